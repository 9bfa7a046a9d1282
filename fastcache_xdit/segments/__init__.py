"""Blocks that are skipped together, and what is kept of them between steps."""
