"""Saliency: how far each token has moved, and which of them are motion tokens (the paper's M_t), which static."""

from __future__ import annotations

import torch


def token_change(now: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """Return s[i] = ||now[i] - before[i]||^2 for each token, [B, N, D] twice -> [B, N] float32; NaN becomes +inf.

    With the inputs of the blocks at this step and at the reference step, this is the paper's saliency. With the
    stand-in's output and the output at the reference step, it is the predicted change.
    """
    change = (now.float() - before.float()).square().sum(dim=2)
    return change.nan_to_num(nan=torch.inf, posinf=torch.inf)


def moving(saliency: torch.Tensor, token_energy: torch.Tensor, threshold: float) -> torch.Tensor:
    """Return which tokens move, [B, N] bool: s[i] >= threshold * mean energy ||h||^2 of the sample's tokens, [B].

    The threshold is relative to the energy and so fits models of any scale; the energy is the mean over all ranks. At
    threshold 0 every token moves, even one that did not change. A saliency that is not finite counts as moving.
    """
    limit = threshold * torch.where(token_energy.isfinite(), token_energy, 0)
    return ~(saliency < limit[:, None])
