"""Stand-ins for skipped blocks: linear in what computed steps left behind, applied in the model's dtype."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch

from fastcache_xdit.errors import UsageError


class Reference(NamedTuple):
    """One computed step: what entered a segment (None where nobody asks for it) and what the segment added.

    Both are [B, N, D]; residual R = H[out] - H[in].
    """

    step: int
    entered: torch.Tensor | None
    residual: torch.Tensor


class Past(NamedTuple):
    """What a stand-in for one step looks back to.

    Attributes:
        step: the skipped step.
        references: the last computed steps of one stream, newest first, as many as the stand-in asks for.
        computed: all computed steps of the request so far, newest first.
    """

    step: int
    references: Sequence[Reference]
    computed: tuple[int, ...]


class StandIn(Protocol):
    """What replaces the blocks of one segment at a skipped step.

    Attributes:
        references: computed steps that it looks back to.
        entered_kept: how many of these must keep what entered the segment.
    """

    references: int
    entered_kept: int

    def begin(self, sigmas: Sequence[float]) -> None:
        """Begin a request whose steps have these noise levels; none in a user's own loop."""

    def residual(self, stream: str, entered: torch.Tensor, past: Past) -> torch.Tensor:
        """Return R[t] of one stream, given what enters now [B, N, D]."""


class Polynomial:
    """R[t] continued from computed steps by the polynomial through them; nothing is fitted.

    Order 0 is `reuse` (FBCache, TeaCache), order 1 finite differences (Taylor 1), order 2 Taylor 2. Near the start of
    a request the order is what the computed steps allow.
    """

    entered_kept = 0

    def __init__(self, order: int) -> None:
        self.references = order + 1

    def begin(self, sigmas: Sequence[float]) -> None:
        """Do nothing: the polynomial runs in the index of the step."""

    def residual(self, stream: str, entered: torch.Tensor, past: Past) -> torch.Tensor:
        """Return the polynomial's value at the skipped step."""
        used = past.references[: self.references]
        weights = polynomial_weights([reference.step for reference in used], past.step)
        total = weights[0] * used[0].residual if len(used) > 1 else used[0].residual
        for weight, reference in zip(weights[1:], used[1:], strict=True):
            total = torch.add(total, reference.residual, alpha=weight)
        return total


def polynomial_weights(steps: Sequence[float], step: float) -> list[float]:
    """Return the Lagrange weights w with sum_k w_k R[steps_k] = the polynomial through all references, at `step`."""
    weights = []
    for own in steps:
        weight = 1.0
        for other in steps:
            if other != own:
                weight *= (step - other) / (own - other)
        weights.append(weight)
    return weights


UNFITTED = {"reuse": 0, "history": 1, "taylor2": 2, "delta": 0, "delta+history": 1}


def unfitted(name: str) -> Polynomial:
    """Return what a stand-in is before anything was calibrated: `delta` has A = I, `history` is Taylor 1.

    Raises:
        UsageError: `affine`, which is nothing without a fit.
    """
    if name not in UNFITTED:
        raise UsageError(
            f"stand_in {name!r} needs a calibration file: give calibration, or one of {', '.join(UNFITTED)}"
        )
    return Polynomial(UNFITTED[name])
