"""A tiny pipeline in a service: its requests, and how far two results are from each other."""

from __future__ import annotations

from typing import Any

import torch

from fastcache_xdit import FastCacheConfig
from tests import tiny

STEPS = 8
MASK = "10" * (STEPS // 2)
BLOCKS = FastCacheConfig.scheduled(MASK, lead_blocks=0)  # skips blocks
OUTPUT = FastCacheConfig(learn=0)  # skips the transformer, at half of the steps
CONFIGS = {"blocks": BLOCKS, "output": OUTPUT}


def served(pipe: Any, seed: int = 0, steps: int = STEPS, **more: Any) -> torch.Tensor:
    """Latents of one request."""
    return torch.as_tensor(pipe(**tiny.call_arguments("sd3", seed=seed), num_inference_steps=steps, **more)[0])


def skips(handle: Any) -> int:
    """Number of skipped steps of the last request."""
    return len({entry.step for entry in handle.report().ledger if entry.skip})
