"""Partial steps: some tokens go through the blocks, the others take the stand-in."""
