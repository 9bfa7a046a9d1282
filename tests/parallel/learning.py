"""What the worker that learns and its tests share."""

from __future__ import annotations

from typing import NamedTuple

import torch

STEPS, LEARN, SERVED = 10, 3, 2


class Answer(NamedTuple):
    """What one rank saw of one layout: of each request whether it was planned by what was learnt, and its decisions."""

    learnt: list[bool]
    choices: list[list[tuple]]
    mask: str
    weights: dict[int, torch.Tensor]
    kept: list[str]
    stamp: str
