"""What all trainings share: the clock that drives the learning rate, the moving average, checkpoints and the log."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from fastcache_xdit.files import replacing

SAVE_EVERY_SECONDS = 300.0
LOG_EVERY_STEPS = 10
_DECAY = 0.99
_Tensors = tuple[torch.Tensor, ...] | list[torch.Tensor]


def seed_everything(seed: int) -> random.Random:
    """Seed torch, and return a Python generator for scenes."""
    torch.manual_seed(seed)
    return random.Random(seed)


@dataclass
class TrainingClock:
    """Seconds of training against a budget, over all resumed runs."""

    budget: float
    spent_before: float = 0.0
    started: float = field(default_factory=time.monotonic)

    @property
    def spent(self) -> float:
        """Return the seconds of training so far."""
        return self.spent_before + time.monotonic() - self.started

    @property
    def progress(self) -> float:
        """Return the share of the budget that is spent, at most 1."""
        return min(1.0, self.spent / self.budget)


def learning_rate_factor(step: int, progress: float, warmup_steps: int = 50, hold: float = 0.3) -> float:
    """Warm up by steps, stay constant up to `hold` of the time budget, then fall linearly to zero at its end."""
    warmup = min(1.0, (step + 1) / warmup_steps)
    return warmup * min(1.0, (1.0 - progress) / (1.0 - hold))


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Scale every group's base rate, kept under `base_lr`, by `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("base_lr", group["lr"]) * factor


def moving_average(model: nn.Module, steps: int = 0) -> AveragedModel:
    """Start an exponential moving average of a model's parameters, which forgets faster at the start.

    Args:
        model: its parameters now are the average so far.
        steps: optimiser steps that this average has seen.
    """
    average = AveragedModel(model, multi_avg_fn=_move)
    average.n_averaged.fill_(steps + 1)  # at 0 the first update would forget what the model started from
    return average


def _move(averages: _Tensors, live: _Tensors, count: torch.Tensor | int) -> None:
    step = int(count) - 1
    decay = min(_DECAY, (1 + step) / (10 + step))
    torch._foreach_lerp_(averages, live, 1 - decay)


class LossLog:
    """A file of JSON lines with `step`, `samples`, `seconds`, `loss` ..."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path

    def write(self, **values: float) -> None:
        """Append one line, numbers rounded to 5 digits, and print it."""
        line = json.dumps({k: round(v, 5) for k, v in values.items()})
        with self.path.open("a") as stream:
            stream.write(line + "\n")
        print(line, flush=True)


def save_checkpoint(path: Path, state: dict) -> None:
    """Write `state` in such a way that an interruption never destroys the checkpoint before it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        torch.save(state, partial)


def load_checkpoint(path: Path) -> dict | None:
    """Read the saved state; None where there is none yet."""
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None


def use_plain_attention() -> None:
    """Compute attention by plain matrix products from now on."""
    # On CPU the fused kernels' bfloat16 backward takes several times as long at this size.
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)


def compile_blocks(blocks: Iterable[nn.Module]) -> None:
    """Compile each block for one thread and for the single shape that training uses."""
    for block in blocks:
        block.compile(dynamic=False, options={"cpp.threads": 1})
