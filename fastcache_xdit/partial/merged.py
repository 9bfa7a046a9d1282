"""Partial steps whose tokens are merged: every rank merges its own, within windows, to the same count."""

from __future__ import annotations

import torch

from fastcache_xdit.options import TokensConfig
from fastcache_xdit.tokens.pyramid import Pyramid, pyramid


class Merged:
    """`Kept` tokens that are means of clusters.

    Args:
        found: the clusters.
        entered: what enters the segment, [B, N, D].
    """

    def __init__(self, found: Pyramid, entered: torch.Tensor) -> None:
        self.found = found
        self.levels = found.merge(entered)
        self.count = self.levels[-1].shape[1]

    def take(self, x: torch.Tensor) -> torch.Tensor:
        """The clusters' means, [B, count, D]; `x` is what entered."""
        return self.levels[-1]

    def put(self, rows: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        """Each token: what its cluster gained in `rows` [B, count, D]; `rest` is not used, as every token has one."""
        return self.found.unmerge(rows, self.levels)

    def look_up(self, table: torch.Tensor) -> torch.Tensor:
        """What a table [N, d] has for the tokens in the middle of the clusters, [B, count, d]."""
        return self.found.take_centres(table[None])


def merge(options: TokensConfig, entered: torch.Tensor, before: torch.Tensor) -> Merged | None:
    """The tokens [B, N, D] merged, given those of the last whole step; None where too few would be saved."""
    ratio = options.merge_ratio
    assert ratio is not None
    ratios = ratio if isinstance(ratio, tuple) else (ratio,)
    window, neighbours, weight = options.merge_window, options.merge_neighbours, options.merge_temporal_weight
    merged = Merged(pyramid(entered, before, ratios, window, neighbours, weight), entered)
    return merged if options.pays(merged.count / entered.shape[1]) else None
