"""The tests of whether a change is significant; plain numbers, no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np

from fastcache_xdit.clock import Tick
from fastcache_xdit.decision.evidence import Evidence


class Verdict(NamedTuple):
    """The answer of a test: the relative error that a skip is predicted to cause, and whether that is significant."""

    predicted_error: float
    significant: bool


class SignificanceTest(Protocol):
    """A test of the change of the hidden states that enter a segment."""

    def ask(self, evidence: Evidence, tick: Tick) -> Verdict:
        """Return the verdict for one segment at one step."""


class Paper:
    """The literal rule of arXiv 2505.20353: skip if change^2 <= chi2.ppf(1 - alpha, n) / n with n = N D.

    For comparison only: with the n of any real model the right side is 1.00, and every change below 100 % passes.
    """

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha

    def ask(self, evidence: Evidence, tick: Tick) -> Verdict:
        """Compare the squared change with the quantile divided by its degrees of freedom."""
        limit = quantile(self.alpha, evidence.values)
        return Verdict(evidence.change, not evidence.change**2 <= limit)


@dataclass(frozen=True)
class Spread:
    """The calibrated error model of one segment: from the change on entry to the error of the final latents.

    expected error^2 = null[step] * runs[skipped] * tau * change^2, with tau = b0 + b1 motion + b2 t + b3 t^2 (the
    paper's adaptive threshold; t runs from 0 to 1 over the request). Actual over expected error^2 is modelled as
    chi-squared with `dof` effective degrees of freedom, divided by `dof` (Satterthwaite: 2 / variance of the ratio).

    Attributes:
        sigmas: noise level of each calibrated step.
        null: for each calibrated step, expected error^2 / change^2; tolerance^2 / null is the paper's null variance.
        runs: factor after 0, 1, 2, ... steps skipped in a row; longer runs use the last one.
        trajectory: b0 to b3.
        dof: effective degrees of freedom.
        noise: relative difference of final latents caused by rounding alone; a smaller tolerance is raised to it.
    """

    sigmas: tuple[float, ...]
    null: tuple[float, ...]
    runs: tuple[float, ...]
    trajectory: tuple[float, float, float, float]
    dof: float
    noise: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a calibration file, where `sigmas` are called `levels`."""
        values = asdict(self)
        return {"levels": values.pop("sigmas"), **values}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Spread:
        """Build from the values of `to_dict`."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(sigmas=fields.pop("levels"), **fields)

    def at(self, sigmas: Sequence[float]) -> Spread:
        """Return the error model for other noise levels; `null` is interpolated in logarithms."""
        null = np.interp(sigmas, self.sigmas[::-1], np.log(self.null[::-1]))
        return replace(self, sigmas=tuple(sigmas), null=tuple(np.exp(null).tolist()))

    def expected(self, step: int, change: float, motion: float, skipped: int) -> float:
        """Return the expected relative error^2 of the final latents if this step is skipped."""
        run = self.runs[min(skipped, len(self.runs) - 1)]
        return self.null[step] * run * self.tau(step, motion) * change**2

    def tau(self, step: int, motion: float) -> float:
        """Return tau = b0 + b1 motion + b2 t + b3 t^2, at least 0.05."""
        b0, b1, b2, b3 = self.trajectory
        t = step / max(len(self.sigmas) - 1, 1)
        return max(b0 + b1 * motion + b2 * t + b3 * t * t, 0.05)

    def exceeds(self, expected: float, tolerance: float) -> float:
        """Return the probability that the actual error exceeds the tolerance, given the expected error^2."""
        from scipy.stats import chi2

        return float(chi2.sf(self.dof * tolerance**2 / expected, self.dof)) if expected else 0.0


class Calibrated:
    """The paper's test with calibrated statistics (method.md 1).

    Skip if and only if T = dof expected / tolerance^2 <= chi2.ppf(1 - alpha, dof).

    Args:
        alpha: significance level.
        tolerance: relative error of the final latents.
        spread: the error model, at the noise levels of the request.
    """

    def __init__(self, alpha: float, tolerance: float, spread: Spread) -> None:
        self.tolerance = max(tolerance, spread.noise)
        self.spread = spread
        self.limit = quantile(alpha, spread.dof)

    def ask(self, evidence: Evidence, tick: Tick) -> Verdict:
        """Compare the expected error of the final latents with the tolerance."""
        expected = self.spread.expected(tick.step, evidence.change, evidence.motion, evidence.track.skipped)
        return Verdict(math.sqrt(expected), not expected / self.tolerance**2 <= self.limit)


class NoTest:
    """The rule of `test: none`: no change is significant, so that the schedule decides."""

    def ask(self, evidence: Evidence, tick: Tick) -> Verdict:
        """Return that the change is insignificant."""
        return Verdict(0.0, False)


@lru_cache
def quantile(alpha: float, dof: float) -> float:
    """Return chi2.ppf(1 - alpha, dof) / dof."""
    from scipy.stats import chi2  # imported here, because it takes long and few configs need it

    return float(chi2.ppf(1 - alpha, dof) / dof)
