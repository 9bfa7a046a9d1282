"""Partial steps whose tokens are merged: every rank merges its own, within windows, to the same count."""

from __future__ import annotations

import torch

from fastcache_xdit.options import TokensConfig
from fastcache_xdit.tokens.merging import KeepAll, Merge, merging


class Merged:
    """`Kept` tokens that are means of clusters.

    Args:
        found: the clusters.
        entered: what enters the segment, [B, N, D].
    """

    def __init__(self, found: Merge, entered: torch.Tensor) -> None:
        self.found = found
        self.entered = entered
        self.means = found.merge(entered)
        self.count = self.means.shape[1]

    def take(self, x: torch.Tensor) -> torch.Tensor:
        """The clusters' means, [B, count, D]; `x` is what entered."""
        return self.means

    def put(self, rows: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        """Each token: what its cluster gained in `rows` [B, count, D]; `rest` is not used, as every token has one."""
        return self.found.unmerge(rows, self.entered, self.means)

    def look_up(self, table: torch.Tensor) -> torch.Tensor:
        """What a table [N, d] has for the tokens in the middle of the clusters, [B, count, d]."""
        return self.found.centres.take_shared(table)


def merge(options: TokensConfig, entered: torch.Tensor, before: torch.Tensor) -> Merged | None:
    """The tokens [B, N, D] merged, given those of the last whole step; None where too few would be saved."""
    assert options.merge_ratio is not None
    window, neighbours, weight = options.merge_window, options.merge_neighbours, options.merge_temporal_weight
    found = merging(entered, before, options.merge_ratio, window, neighbours, weight)
    total = entered.shape[1]
    if isinstance(found, KeepAll) or not options.pays(found.windows.merged / total):
        return None
    return Merged(found, entered)
