"""Is a change insignificant? The tests that a schedule or nothing can be combined with; plain numbers, no torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np


class Finding(NamedTuple):
    """A test's answer: the error that a skip is predicted to cause, and whether that is too much."""

    predicted_error: float
    significant: bool


class SignificanceTest(Protocol):
    """A rule on the change of the hidden states that enter a segment.

    `change` is relative (norm over norm), `motion` the relative variance of the tokens' saliencies, `order` how many
    references the stand-in has, `observed` the pairs (change, error) of this request's computed steps, `skipped` how
    many steps in a row were skipped before this one.
    """

    def ask(
        self, step: int, change: float, motion: float, order: int, observed: Sequence[tuple[float, float]], skipped: int
    ) -> Finding:
        """The finding for one segment at one step."""


class Online:
    """Uncalibrated: the null variance is tracked over a window of computed steps; works on any model at once."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def ask(
        self, step: int, change: float, motion: float, order: int, observed: Sequence[tuple[float, float]], skipped: int
    ) -> Finding:
        """See `SignificanceTest`.

        A stand-in of order k (reuse: 1, extrapolation: 2) errs like the k-th power of the distance to its references;
        the median over the window keeps one odd step from deciding. Before anything was observed the error is taken to
        be as large as the change itself.
        """
        scaled = [error * (change / seen) ** order for seen, error in observed]
        predicted = statistics.median(scaled) if scaled else change
        return Finding(predicted, not predicted < self.threshold)


class Paper:
    """The literal rule of arXiv 2505.20353: skip while change^2 <= chi2.ppf(1 - alpha, n) / n with n = N D.

    For the n of any real model the right side is 1.00 and every change below 100 % passes: for comparison only.
    """

    def __init__(self, alpha: float, values: int) -> None:
        self.limit = quantile(alpha, values)

    def ask(
        self, step: int, change: float, motion: float, order: int, observed: Sequence[tuple[float, float]], skipped: int
    ) -> Finding:
        """See `SignificanceTest`."""
        return Finding(change, not change**2 <= self.limit)


@dataclass(frozen=True)
class Spread:
    """How the error that a skip causes in the final latents follows the change that is seen, for one segment.

    expected error^2 = null[step] * runs[skipped] * tau * change^2, tau = b0 + b1 motion + b2 t + b3 t^2 (the paper's
    adaptive threshold; t from 0 to 1 along the request). Actual over expected error^2 is taken to be chi-squared with
    `dof` effective degrees of freedom over `dof` (Satterthwaite: 2 / variance of that ratio).

    Attributes:
        sigmas: noise level of each calibrated step.
        null: per calibrated step, expected error^2 over change^2: tolerance^2 / null is the paper's null variance.
        runs: factor after 0, 1, 2, ... steps skipped in a row; longer runs take the last one.
        trajectory: b0 to b3.
        dof: effective degrees of freedom.
        noise: relative difference of final latents that rounding alone makes; no tolerance is taken to be below it.
    """

    sigmas: tuple[float, ...]
    null: tuple[float, ...]
    runs: tuple[float, ...]
    trajectory: tuple[float, float, float, float]
    dof: float
    noise: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a calibration file, where `sigmas` are called `levels`."""
        values = asdict(self)
        return {"levels": values.pop("sigmas"), **values}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Spread:
        """The inverse of `to_dict`."""
        fixed: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(sigmas=fixed.pop("levels"), **fixed)

    def at(self, sigmas: Sequence[float]) -> Spread:
        """The same for another schedule, by the noise level; logarithms are interpolated."""
        null = np.interp(sigmas, self.sigmas[::-1], np.log(self.null[::-1]))
        return replace(self, sigmas=tuple(sigmas), null=tuple(np.exp(null).tolist()))

    def expected(self, step: int, change: float, motion: float, skipped: int) -> float:
        """Expected error^2 of the final latents, relative to them."""
        run = self.runs[min(skipped, len(self.runs) - 1)]
        return self.null[step] * run * self.tau(step, motion) * change**2

    def tau(self, step: int, motion: float) -> float:
        """b0 + b1 motion + b2 t + b3 t^2, kept positive."""
        b0, b1, b2, b3 = self.trajectory
        t = step / max(len(self.sigmas) - 1, 1)
        return max(b0 + b1 * motion + b2 * t + b3 * t * t, 0.05)

    def exceeds(self, expected: float, tolerance: float) -> float:
        """Probability that the true error is above the tolerance, given what is expected."""
        from scipy.stats import chi2

        return float(chi2.sf(self.dof * tolerance**2 / expected, self.dof)) if expected else 0.0


class Calibrated:
    """The paper's test made exact (method.md 1): skip iff T = dof expected / tolerance^2 <= chi2.ppf(1-alpha, dof)."""

    def __init__(self, alpha: float, tolerance: float, spread: Spread) -> None:
        self.tolerance = max(tolerance, spread.noise)
        self.spread = spread
        self.limit = quantile(alpha, spread.dof)

    def ask(
        self, step: int, change: float, motion: float, order: int, observed: Sequence[tuple[float, float]], skipped: int
    ) -> Finding:
        """See `SignificanceTest`."""
        expected = self.spread.expected(step, change, motion, skipped)
        return Finding(math.sqrt(expected), not expected / self.tolerance**2 <= self.limit)


class Unasked:
    """`test: none`: no change is significant; a schedule decides."""

    def ask(
        self, step: int, change: float, motion: float, order: int, observed: Sequence[tuple[float, float]], skipped: int
    ) -> Finding:
        """See `SignificanceTest`."""
        return Finding(0.0, False)


@lru_cache
def quantile(alpha: float, dof: float) -> float:
    """chi2.ppf(1 - alpha, dof) / dof."""
    from scipy.stats import chi2

    return float(chi2.ppf(1 - alpha, dof) / dof)
