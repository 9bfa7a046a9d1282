"""The importance S of tokens for merging: how many similar tokens are near, and how far the token has moved."""

from __future__ import annotations

from typing import NamedTuple

import torch

from fastcache_xdit.tokens.saliency import token_change
from fastcache_xdit.tokens.windows import Windows

LARGEST = torch.finfo(torch.float32).max
SMALLEST = torch.finfo(torch.float32).tiny
MOST_MOTION = 1e6  # far above any real motion, and sums of importances stay finite


class Neighbourhood(NamedTuple):
    """Distances between the tokens of each window, in units of the root mean square norm of the window's tokens.

    Each window has its own unit, so that ranks which hold whole windows merge as one process does.

    Attributes:
        windows: how the tokens are split.
        unit: [B, W] float32, sqrt(mean ||h||^2), at least the smallest normal number.
        distance: [B, W, w, w] float32, ||h_i - h_j|| / unit, finite; padding counts as zero tokens.
    """

    windows: Windows
    unit: torch.Tensor
    distance: torch.Tensor


def neighbourhood(tokens: torch.Tensor, windows: Windows) -> Neighbourhood:
    """Measure the distances between tokens [B, N, D] within their windows; those not finite become the largest number.

    Differences are computed directly, because a matrix product would give equal tokens a distance by rounding.
    """
    local = windows.split(tokens.float())
    unit = (local.square().sum(dim=(2, 3)) / windows.lengths(tokens.device)).sqrt().clamp_min(SMALLEST)
    apart = torch.cdist(local, local, compute_mode="donot_use_mm_for_euclid_dist") / unit[..., None, None]
    return Neighbourhood(windows, unit, apart.nan_to_num(nan=LARGEST, posinf=LARGEST))


def density(near: Neighbourhood, neighbours: int) -> torch.Tensor:
    """Return rho_sp[i] = exp(-1/K sum_{j in kNN(i)} ||h_i - h_j||^2 / unit^2), [B, N] float32 (FastCache v3).

    kNN(i) are the K = `neighbours` nearest other tokens of the window, or all others if it holds fewer. A token that
    is alone in its window has density 1.
    """
    place = torch.arange(near.windows.size, device=near.unit.device)
    present = place < near.windows.lengths(near.unit.device)[:, None]
    others = present[:, None, :] & (place != place[:, None])
    nearest = near.distance.where(others, torch.inf).topk(min(neighbours, len(place) - 1), largest=False).values
    exists = nearest.isfinite()
    mean = nearest.square().where(exists, 0).sum(dim=-1) / exists.sum(dim=-1).clamp_min(1)
    return near.windows.join((-mean).exp())


def importance(
    tokens: torch.Tensor, before: torch.Tensor | None, near: Neighbourhood, neighbours: int, temporal_weight: float
) -> torch.Tensor:
    """Return S[i] = rho_sp[i] (1 + lambda rho_tm[i]) of tokens [B, N, D], [B, N] float32 > 0 (FastCache v3).

    rho_tm[i] = ||h_i - before_i|| in the unit of its window, so that one lambda (`temporal_weight`) fits models of any
    scale; capped to stay finite, and 0 if `before` is None.
    """
    spatial = density(near, neighbours)
    if before is None:
        return spatial.clamp_min(SMALLEST)
    change = near.windows.split(token_change(tokens, before).sqrt()) / near.unit[..., None]
    motion = near.windows.join(change.nan_to_num(nan=MOST_MOTION).clamp_max(MOST_MOTION))
    return (spatial * (1 + temporal_weight * motion)).clamp_min(SMALLEST)
