"""Where ranks of tests run: on the CPU, or on GPUs, which they share where there are fewer; nothing else differs."""

from __future__ import annotations

import os
from typing import Any

import torch

VARIABLE = "FASTCACHE_TEST_DEVICE"  # cpu, the default, or cuda


def device() -> torch.device:
    """The device of this rank."""
    kind = os.environ.get(VARIABLE, "cpu")
    return torch.device(kind, local_rank()) if kind == "cuda" else torch.device(kind)


def local_rank() -> int:
    """Number of this rank's GPU."""
    return int(os.environ.get("LOCAL_RANK", 0)) % max(1, torch.cuda.device_count())


def backend(ranks: int) -> str:
    """What messages go through: NCCL takes one rank on each GPU, and Gloo any number."""
    on_gpus = os.environ.get(VARIABLE) == "cuda" and ranks <= torch.cuda.device_count()
    return "nccl" if on_gpus else "gloo"


def moved(values: dict[str, Any]) -> dict[str, Any]:
    """Put the tensors among the arguments of a call on this rank's device."""
    return {name: value.to(device()) if torch.is_tensor(value) else value for name, value in values.items()}
