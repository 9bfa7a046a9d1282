"""Merging similar tokens of a window into one and back (FastCache v3): `merge` before the blocks, `unmerge` behind."""

from __future__ import annotations

from typing import NamedTuple

import torch

from fastcache_xdit.tokens.density import Neighbourhood, importance, neighbourhood
from fastcache_xdit.tokens.selection import Selection, select
from fastcache_xdit.tokens.windows import Windows


class KeepAll:
    """Nothing is merged: everything passes as it is, the same tensor."""

    def merge(self, x: torch.Tensor) -> torch.Tensor:
        """See `Merge`."""
        return x

    def unmerge(self, y: torch.Tensor, before_merge: torch.Tensor, merged: torch.Tensor) -> torch.Tensor:
        """See `Merge`."""
        return y

    def take_centres(self, x: torch.Tensor) -> torch.Tensor:
        """See `Merge`."""
        return x


class Merge(NamedTuple):
    """Every token belongs to one of M clusters of its window; a cluster becomes one token, at its centre's place.

    Attributes:
        assignment: [B, N] int64, the cluster of each token; clusters count up with their centres' places.
        centres: the token in the middle of each cluster, M per sample.
        weights: [B, N] float32, importance; each cluster's add up to 1.
        windows: how the tokens are split.
    """

    assignment: torch.Tensor
    centres: Selection
    weights: torch.Tensor
    windows: Windows

    def merge(self, x: torch.Tensor) -> torch.Tensor:
        """Each cluster's weighted mean, [B, N, D] -> [B, M, D], summed in float32."""
        shares = _members(self.assignment, self.windows) * self.windows.split(self.weights)[:, :, None]
        means = shares @ self.windows.split(x.float())
        return means.flatten(1, 2)[:, : self.windows.merged].to(x.dtype)

    def unmerge(self, y: torch.Tensor, before_merge: torch.Tensor, merged: torch.Tensor) -> torch.Tensor:
        """out_i = y[c(i)] + (x_i - merged[c(i)]): each token its cluster's output y [B, M, D] and its own residual.

        Added up as x_i + (y - merged)[c(i)] in float32, so that y = merged gives x [B, N, D] back bit for bit.
        """
        gain = (y.float() - merged.float()).take_along_dim(self.assignment[..., None], dim=1)
        return (before_merge + gain).to(before_merge.dtype)

    def take_centres(self, x: torch.Tensor) -> torch.Tensor:
        """Token-aligned inputs at the centres: [B, N, ...], or [1, N, ...] if all samples share it -> [B, M, ...]."""
        return self.centres.take(x)


def merging(
    tokens: torch.Tensor,
    before: torch.Tensor | None,
    ratio: float,
    window: int,
    neighbours: int,
    temporal_weight: float,
) -> Merge | KeepAll:
    """How to merge tokens [B, N, D] to about `ratio` of them, within windows of `window`; ratio 1 keeps all.

    `before` are the tokens at the reference, None where there is none; see `importance` for the last two.

    Raises:
        ValueError: a ratio outside (0, 1] or a window below 1.
    """
    windows = Windows.of(tokens.shape[1], window, ratio)
    if ratio == 1:
        return KeepAll()
    near = neighbourhood(tokens, windows)
    return cluster(near, importance(tokens, before, near, neighbours, temporal_weight))


def cluster(near: Neighbourhood, weight: torch.Tensor) -> Merge:
    """Clusters by density peaks within each window, by an importance S [B, N] that is positive.

    Centres are the tokens with the largest S times distance to a token of higher S: important, and not yet stood for.
    The other tokens join the nearest centre. Ties go to the lower index.
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
    """[B, W, w] bool; the peak of a window has nothing above it and always counts, padding (weight 0) never."""
    place = torch.arange(near.windows.size, device=weight.device)
    mine, theirs = weight[..., None], weight[..., None, :]
    higher = (theirs > mine) | ((theirs == mine) & (place < place[:, None]))
    score = weight * near.distance.where(higher, torch.inf).amin(dim=-1)
    rank = score.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return rank < near.windows.keeps(weight.device)[:, None]


def _members(assignment: torch.Tensor, windows: Windows) -> torch.Tensor:
    """[B, W, keep, w] bool: which tokens of a window belong to each of its clusters."""
    first = torch.arange(0, windows.merged, windows.keep, device=assignment.device)
    slot = torch.arange(windows.keep, device=assignment.device)
    return (windows.split(assignment) - first[:, None])[:, :, None] == slot[:, None]
