"""Stand-ins for skipped blocks, linear in the states of computed steps; this module holds those without a fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch

from fastcache_xdit.errors import UsageError

SAME_LEVEL = 0.02  # of the distance to where a line leads, below which two noise levels are one


class Reference(NamedTuple):
    """One stream of a segment at a computed step.

    Attributes:
        step: the computed step.
        entered: the input H [B, N, D] of the segment; None if it is not needed.
        residual: R = output - input, [B, N, D].
    """

    step: int
    entered: torch.Tensor | None
    residual: torch.Tensor


def kept_dtype(reference_dtype: str, computed: torch.dtype) -> torch.dtype:
    """Return the dtype that references are kept in: the option's, or the one that the model computes in."""
    kept: torch.dtype = computed if reference_dtype == "model" else getattr(torch, reference_dtype)
    return kept


class Past(NamedTuple):
    """A skipped step and the computed steps before it.

    Attributes:
        step: the skipped step.
        references: the last computed steps of one stream, newest first, as many as the stand-in uses.
        computed: all computed steps of the request so far, newest first.
    """

    step: int
    references: Sequence[Reference]
    computed: tuple[int, ...]


class StandIn(Protocol):
    """Estimates the residual of one segment at a skipped step.

    Attributes:
        references: number of computed steps that it uses.
        entered_kept: number of these, the newest ones, whose input states it uses.
    """

    references: int
    entered_kept: int

    def begin(self, sigmas: Sequence[float]) -> None:
        """Begin a request whose steps have these noise levels; none in a user's own loop."""

    def residual(self, stream: str, entered: torch.Tensor, past: Past) -> torch.Tensor:
        """Return the estimated residual [B, N, D] of one stream, given the states [B, N, D] that enter.

        References may be of another dtype than the states.
        """


class Polynomial:
    """Extrapolates the residual by the polynomial through computed steps; nothing is fitted.

    Order 0 is `reuse` (as in FBCache and TeaCache), order 1 finite differences (Taylor 1), order 2 Taylor 2. At the
    start of a request the order is lower, while there are fewer computed steps.

    Args:
        order: order of the polynomial.
    """

    entered_kept = 0

    def __init__(self, order: int) -> None:
        self.references = order + 1

    def begin(self, sigmas: Sequence[float]) -> None:
        """Do nothing; the polynomial depends on the number of the step alone."""

    def residual(self, stream: str, entered: torch.Tensor, past: Past) -> torch.Tensor:
        """Return the polynomial's value at the skipped step."""
        used = past.references[: self.references]
        weights = polynomial_weights([reference.step for reference in used], past.step)
        newest = used[0].residual
        total = weights[0] * newest.to(torch.promote_types(newest.dtype, entered.dtype)) if len(used) > 1 else newest
        for weight, reference in zip(weights[1:], used[1:], strict=True):
            total = torch.add(total, reference.residual, alpha=weight)
        return total


def polynomial_weights(steps: Sequence[float], step: float) -> list[float]:
    """Return Lagrange weights w: sum_k w_k R[steps_k] is the polynomial through all R[steps_k], at `step`."""
    weights = []
    for reference in steps:
        weight = 1.0
        for other in steps:
            if other != reference:
                weight *= (step - other) / (reference - other)
        weights.append(weight)
    return weights


def line_weights(levels: Sequence[float], level: float) -> list[float]:
    """Return the weights of the straight line through one or two references, newest first, at a noise level.

    Two at the same level, as second-order solvers evaluate them, show no slope: the newest alone counts.
    """
    if len(levels) == 2 and abs(levels[0] - levels[1]) <= SAME_LEVEL * abs(levels[0] - level):
        return [1.0, 0.0]
    return polynomial_weights(levels, level)


# The order of the polynomial that each stand-in is without a calibration.
UNFITTED = {"reuse": 0, "history": 1, "taylor2": 2, "delta": 0, "delta+history": 1}


def unfitted(name: str) -> Polynomial:
    """Return the stand-in `name` without a calibration: `delta` has A = I, `history` is Taylor 1.

    Raises:
        UsageError: `affine`, which needs a fit.
    """
    if name not in UNFITTED:
        raise UsageError(
            f"stand_in {name!r} needs a calibration file: give calibration, or one of {', '.join(UNFITTED)}"
        )
    return Polynomial(UNFITTED[name])
