"""Batch jobs: a file of prompts becomes images, each exactly once, whatever dies on the way."""
