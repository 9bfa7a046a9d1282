"""Partial steps that merge tokens: each rank merges its own tokens within windows, to the same number."""

from __future__ import annotations

import torch

from fastcache_xdit.options import TokensConfig
from fastcache_xdit.tokens.pyramid import Pyramid, pyramid


class MergedTokens:
    """`KeptTokens` that are the means of clusters of tokens.

    Args:
        clusters: the clusters, in one or more stages.
        entered: the hidden states that enter the segment, [B, N, D].
    """

    def __init__(self, clusters: Pyramid, entered: torch.Tensor) -> None:
        self.clusters = clusters
        self.levels = clusters.merge(entered)
        self.count = self.levels[-1].shape[1]

    def take(self, x: torch.Tensor) -> torch.Tensor:
        """Return the means of the clusters, [B, count, D]; `x` must be the states that entered."""
        return self.levels[-1]

    def put(self, rows: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        """Return all tokens [B, N, D], each changed as its cluster is in `rows` [B, count, D]; `rest` is unused."""
        return self.clusters.unmerge(rows, self.levels)

    def look_up(self, table: torch.Tensor) -> torch.Tensor:
        """Return the rows of a table [N, d] for the tokens at the centres of the clusters, [B, count, d]."""
        return self.clusters.take_centres(table[None])


def merge(options: TokensConfig, entered: torch.Tensor, before: torch.Tensor) -> MergedTokens | None:
    """Merge the tokens [B, N, D], given those of the last full step; None if that would save too few tokens."""
    ratio = options.merge_ratio
    assert ratio is not None
    ratios = ratio if isinstance(ratio, tuple) else (ratio,)
    window, neighbours, weight = options.merge_window, options.merge_neighbours, options.merge_temporal_weight
    merged = MergedTokens(pyramid(entered, before, ratios, window, neighbours, weight), entered)
    return merged if options.pays(merged.count / entered.shape[1]) else None
