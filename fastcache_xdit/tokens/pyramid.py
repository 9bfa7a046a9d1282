"""Merging in several stages, each on what the one before left (FastCache v3's multi-stage form)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from fastcache_xdit.tokens.merging import KeepAll, Merge, merging


class Pyramid(NamedTuple):
    """Stages of merging, finest first; level 0 are the tokens themselves, level s what stage s left."""

    stages: tuple[Merge | KeepAll, ...]

    def merge(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The levels of x [B, N, D], finest first; blocks run on the last one."""
        levels = [x]
        for stage in self.stages:
            levels.append(stage.merge(levels[-1]))
        return levels

    def unmerge(self, y: torch.Tensor, levels: Sequence[torch.Tensor]) -> torch.Tensor:
        """Undo the stages in reverse: what blocks made of the last of `levels`, at the size of the first, [B, N, D]."""
        for place in reversed(range(len(levels) - 1)):
            y = self.stages[place].unmerge(y, levels[place], levels[place + 1])
        return y

    def aggregate(
        self, outputs: Sequence[torch.Tensor], levels: Sequence[torch.Tensor], weights: Sequence[float]
    ) -> torch.Tensor:
        """sum_s w_s U_s(y_s) / sum_s w_s over the stages' outputs y_s, where U_s undoes the stages up to s.

        Where blocks ran on every stage's tokens, coarse outputs carry the whole and fine ones the detail; `outputs` and
        `weights` are one per stage, finest first, and `levels` are from `merge`. Summed in float32.
        """
        total = torch.zeros_like(levels[0], dtype=torch.float32)
        for end, y, weight in zip(range(2, len(levels) + 1), outputs, weights, strict=True):
            total += weight / sum(weights) * self.unmerge(y, levels[:end])
        return total.to(levels[0].dtype)

    def take_centres(self, x: torch.Tensor) -> torch.Tensor:
        """Token-aligned inputs at the centres of the last stage: [B, N, ...] or [1, N, ...] -> [B, M, ...]."""
        for stage in self.stages:
            x = stage.take_centres(x)
        return x


def pyramid(
    tokens: torch.Tensor,
    before: torch.Tensor | None,
    ratios: Sequence[float],
    window: int,
    neighbours: int,
    temporal_weight: float,
) -> Pyramid:
    """A stage of `merging` for each ratio, on the merged tokens, and on `before` merged the same way."""
    stages: list[Merge | KeepAll] = []
    for ratio in ratios:
        stages.append(merging(tokens, before, ratio, window, neighbours, temporal_weight))
        tokens = stages[-1].merge(tokens)
        before = None if before is None else stages[-1].merge(before)
    return Pyramid(tuple(stages))
