"""Merging of similar tokens within windows before the blocks, and unmerging behind them (FastCache v3)."""

from __future__ import annotations

from typing import NamedTuple

import torch

from fastcache_xdit.tokens.density import Neighbourhood, importance, neighbourhood
from fastcache_xdit.tokens.selection import Selection, select
from fastcache_xdit.tokens.windows import Windows


class KeepAll:
    """A `Merge` that merges nothing and returns its inputs."""

    def merge(self, x: torch.Tensor) -> torch.Tensor:
        """Return x unchanged."""
        return x

    def unmerge(self, y: torch.Tensor, before_merge: torch.Tensor, merged: torch.Tensor) -> torch.Tensor:
        """Return y unchanged."""
        return y

    def take_centres(self, x: torch.Tensor) -> torch.Tensor:
        """Return x unchanged."""
        return x


class Merge(NamedTuple):
    """An assignment of tokens to M clusters within windows; each cluster becomes one token, at the place of its centre.

    Attributes:
        assignment: [B, N] int64, the cluster of each token; clusters are numbered in the order of their centres.
        centres: the central token of each cluster, M for each sample.
        weights: [B, N] float32, importance; the weights of a cluster add up to 1.
        windows: how the tokens are split.
    """

    assignment: torch.Tensor
    centres: Selection
    weights: torch.Tensor
    windows: Windows

    def merge(self, x: torch.Tensor) -> torch.Tensor:
        """Return the weighted mean of each cluster, [B, N, D] -> [B, M, D], summed in float32."""
        weights = _members(self.assignment, self.windows) * self.windows.split(self.weights)[:, :, None]
        means = weights @ self.windows.split(x.float())
        return means.flatten(1, 2)[:, : self.windows.merged].to(x.dtype)

    def unmerge(self, y: torch.Tensor, before_merge: torch.Tensor, merged: torch.Tensor) -> torch.Tensor:
        """Return out_i = y[c(i)] + (x_i - merged[c(i)]): the output y [B, M, D] of its cluster plus its own offset.

        Computed as x_i + (y - merged)[c(i)] in float32, so that y = merged returns x [B, N, D] bit for bit.
        """
        gain = (y.float() - merged.float()).take_along_dim(self.assignment[..., None], dim=1)
        return (before_merge + gain).to(before_merge.dtype)

    def take_centres(self, x: torch.Tensor) -> torch.Tensor:
        """Return the rows of a token-aligned input at the centres, [B, N, ...] or [1, N, ...] -> [B, M, ...]."""
        return self.centres.take(x)


def merging(
    tokens: torch.Tensor,
    before: torch.Tensor | None,
    ratio: float,
    window: int,
    neighbours: int,
    temporal_weight: float,
) -> Merge | KeepAll:
    """Decide how to merge tokens [B, N, D] to about the fraction `ratio`, within windows; ratio 1 merges nothing.

    Args:
        tokens: the tokens.
        before: the same tokens at the last full step; None if there is none.
        ratio: fraction that remains.
        window: tokens in each window.
        neighbours: K of `density`.
        temporal_weight: lambda of `importance`.
    Raises:
        ValueError: a ratio outside (0, 1] or a window below 1.
    """
    windows = Windows.of(tokens.shape[1], window, ratio)
    if ratio == 1:
        return KeepAll()
    near = neighbourhood(tokens, windows)
    return cluster(near, importance(tokens, before, near, neighbours, temporal_weight))


def cluster(near: Neighbourhood, weight: torch.Tensor) -> Merge:
    """Cluster the tokens of each window around density peaks, given their importance S [B, N] > 0.

    The centres are the tokens with the largest product of S and the distance to the nearest token of higher S:
    important ones with no more important token near. All others join the nearest centre. Ties go to the lower index.
    """
    windows = near.windows
    centre = _is_centre(near, windows.split(weight))
    place = torch.arange(windows.size, device=weight.device)
    to_centre = near.distance.masked_fill(place == place[:, None], -1).where(centre[:, :, None], torch.inf)
    starts = torch.arange(0, windows.total, windows.size, device=weight.device)
    nearest = windows.join(to_centre.argmin(dim=-1) + starts[:, None])
    is_centre = windows.join(centre).int()
    assignment = (is_centre.cumsum(dim=1) - 1).gather(1, nearest)
    totals = (_members(assignment, windows) * windows.split(weight)[:, :, None]).sum(dim=-1).flatten(1)
    return Merge(assignment, select(is_centre, windows.merged), weight / totals.gather(1, assignment), windows)


def _is_centre(near: Neighbourhood, weight: torch.Tensor) -> torch.Tensor:
    """Return [B, W, w] bool: the centres. The most important token of a window always is one, padding never."""
    place = torch.arange(near.windows.size, device=weight.device)
    own, other = weight[..., None], weight[..., None, :]
    higher = (other > own) | ((other == own) & (place < place[:, None]))
    score = weight * near.distance.where(higher, torch.inf).amin(dim=-1)
    rank = score.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return rank < near.windows.keeps(weight.device)[:, None]


def _members(assignment: torch.Tensor, windows: Windows) -> torch.Tensor:
    """Return [B, W, keep, w] bool: which tokens of a window belong to each of its clusters."""
    first = torch.arange(0, windows.merged, windows.keep, device=assignment.device)
    slot = torch.arange(windows.keep, device=assignment.device)
    return (windows.split(assignment) - first[:, None])[:, :, None] == slot[:, None]
