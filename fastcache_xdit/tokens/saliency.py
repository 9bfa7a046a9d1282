"""How much each token moved, and which tokens that makes motion tokens (the paper's M_t; the others are static)."""

from __future__ import annotations

import torch


def token_change(now: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """s[i] = ||now[i] - before[i]||^2 of each token, [B, N, D] twice -> [B, N] float32; NaN becomes +inf.

    The paper's saliency if `now` and `before` enter the stack at this step and at the reference; the predicted change
    if they are a stand-in's output and the output at the reference.
    """
    change = (now.float() - before.float()).square().sum(dim=2)
    return change.nan_to_num(nan=torch.inf, posinf=torch.inf)


def moving(saliency: torch.Tensor, token_energy: torch.Tensor, threshold: float) -> torch.Tensor:
    """[B, N] bool: s[i] >= threshold * the mean energy ||h||^2 of the sample's tokens, given as [B].

    Relative to the energy, so that a threshold fits models of any scale; the caller averages over all ranks' tokens.
    At threshold 0 every token moves, also one that did not change; a saliency or energy that is not finite moves too.
    """
    limit = threshold * torch.where(token_energy.isfinite(), token_energy, 0)
    return ~(saliency < limit[:, None])
