"""The measurements of a calibration beside its sums; the same on every rank."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from fastcache_xdit.decision.significance import Spread
from fastcache_xdit.tuning.pairs import Pair, fit_spread


@dataclass
class Measured:
    """The state of a calibration between its parts.

    Attributes:
        done: number of parts that are done.
        sigmas: noise level of each step.
        pairs: decisions and their errors, from held-out requests.
        gains: for each probed step, the relative error of the final latents per relative error at the step.
        mask: mask of the current on-policy round.
        tried: by gap between computed steps, logarithms of errors [images, candidates] of `coherence.TRIED`.
        noise: relative difference of final latents caused by rounding alone.
        guidance: how guidance combined the branches of the last recorded request (`Combination.to_dict`).
    """

    done: int = 0
    sigmas: list[float] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    gains: dict[int, float] = field(default_factory=dict)
    mask: str = ""
    tried: dict[int, list[list[float]]] = field(default_factory=dict)
    noise: float = 0.0
    guidance: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Measured:
        """Build from the values of `to_dict` after JSON, which turns numeric keys into text."""
        by_number = {name: {int(key): value for key, value in values[name].items()} for name in ("gains", "tried")}
        return cls(**{**values, **by_number, "pairs": [Pair(*pair) for pair in values["pairs"]]})

    def all_gains(self, steps: int) -> list[float]:
        """Return the gain of each step; between probed steps, logarithms are interpolated."""
        probed = sorted(self.gains)
        logarithms = np.interp(range(steps), probed, np.log([self.gains[step] for step in probed]))
        return np.exp(logarithms).tolist()

    def spread(self, steps: int) -> Spread:
        """Fit the error model of the calibrated test."""
        return replace(fit_spread(self.pairs, self.all_gains(steps), self.sigmas), noise=self.noise)
