"""Merging in several stages, each on what the one before left."""

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
        if stages:
            tokens = stages[-1].merge(tokens)
            before = None if before is None else stages[-1].merge(before)
        stages.append(merging(tokens, before, ratio, window, neighbours, temporal_weight))
    return Pyramid(tuple(stages))
