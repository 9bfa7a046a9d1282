"""What both trainings share: the clock that drives the learning rate, the moving average, checkpoints and the log."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

SAVE_EVERY_SECONDS = 300.0
LOG_EVERY_STEPS = 10


def seed_everything(seed: int) -> random.Random:
    """Seed torch and return a Python generator for scenes."""
    torch.manual_seed(seed)
    return random.Random(seed)


@dataclass
class Clock:
    """Training time spent so far, over all resumed runs, against a budget in seconds."""

    budget: float
    spent_before: float = 0.0
    started: float = field(default_factory=time.monotonic)

    @property
    def spent(self) -> float:
        """Seconds of training so far."""
        return self.spent_before + time.monotonic() - self.started

    @property
    def progress(self) -> float:
        """Share of the budget spent, at most 1."""
        return min(1.0, self.spent / self.budget)


def learning_rate_factor(step: int, progress: float, warmup_steps: int = 50, hold: float = 0.3) -> float:
    """Linear warm-up by steps, constant up to ``hold`` of the time budget, then linear decay to zero at its end."""
    warmup = min(1.0, (step + 1) / warmup_steps)
    return warmup * min(1.0, (1.0 - progress) / (1.0 - hold))


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Scale every group's base rate (kept under ``base_lr``) by ``factor``."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("base_lr", group["lr"]) * factor


class MovingAverage:
    """Exponential moving average of parameters, with a short memory at the start."""

    def __init__(self, parameters: list[torch.Tensor], decay: float) -> None:
        self.decay = decay
        self.shadow = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def update(self, parameters: Sequence[torch.Tensor], step: int) -> None:
        """Move the average towards ``parameters`` after optimiser step number ``step`` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.shadow, [p.detach() for p in parameters], 1 - decay)

    @torch.no_grad()
    def swap(self, parameters: list[torch.Tensor]) -> None:
        """Exchange average and live parameters in place; a second call undoes the first."""
        for shadow, live in zip(self.shadow, parameters, strict=True):
            kept = live.detach().clone()
            live.copy_(shadow)
            shadow.copy_(kept)


class LossLog:
    """Appends JSON lines ``{"step", "samples", "seconds", "loss", ...}`` to a file."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path

    def write(self, **values: float) -> None:
        """Add one line and echo it, numbers rounded to 5 digits."""
        line = json.dumps({k: round(v, 5) for k, v in values.items()})
        with self.path.open("a") as stream:
            stream.write(line + "\n")
        print(line, flush=True)


def save_checkpoint(path: Path, state: dict) -> None:
    """Write ``state`` so that an interrupted write never destroys the checkpoint before it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def load_checkpoint(path: Path) -> dict | None:
    """The saved state, or None where there is none yet."""
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None


def use_plain_attention() -> None:
    """Attention by plain matrix products."""
    # On CPU the fused kernels' bfloat16 backward takes several times as long at this size.
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)


def compile_blocks(blocks: Iterable[nn.Module]) -> None:
    """Compile each block for one thread and for the one shape that training uses."""
    for block in blocks:
        block.compile(dynamic=False, options={"cpp.threads": 1})
