"""Merging in several stages, each of which merges the tokens that the previous one left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from fastcache_xdit.tokens.merging import KeepAll, Merge, merging


class Pyramid(NamedTuple):
    """Stages of merging, finest first; level 0 are the tokens themselves, level s those after s stages."""

    stages: tuple[Merge | KeepAll, ...]

    def merge(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return all levels of x [B, N, D], finest first; the blocks run on the last one."""
        levels = [x]
        for stage in self.stages:
            levels.append(stage.merge(levels[-1]))
        return levels

    def unmerge(self, y: torch.Tensor, levels: Sequence[torch.Tensor]) -> torch.Tensor:
        """Unmerge the blocks' output y for the last of `levels` to the size of the first, [B, N, D]."""
        for place in reversed(range(len(levels) - 1)):
            y = self.stages[place].unmerge(y, levels[place], levels[place + 1])
        return y

    def take_centres(self, x: torch.Tensor) -> torch.Tensor:
        """Return the rows of a token-aligned input at the last centres, [B, N, ...] or [1, N, ...] -> [B, M, ...]."""
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
    """Build a stage of `merging` for each ratio, each on the merged tokens of the one before; arguments as there."""
    stages: list[Merge | KeepAll] = []
    for ratio in ratios:
        if stages:
            tokens = stages[-1].merge(tokens)
            before = None if before is None else stages[-1].merge(before)
        stages.append(merging(tokens, before, ratio, window, neighbours, temporal_weight))
    return Pyramid(tuple(stages))
