"""When a block may be skipped: plain numbers in, a decision out (no torch here)."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from fastcache_xdit.clock import Tick
from fastcache_xdit.config import FastCacheConfig


class Decision(NamedTuple):
    """What to do with one segment at one tick, and why."""

    skip: bool
    reason: str
    change: float = math.inf
    predicted_error: float = math.inf


@dataclass
class Track:
    """What the decisions of one segment remember from step to step, equal on all agreeing ranks.

    `observed` holds pairs (relative change, relative error that the stand-in would have made) of computed steps; it is
    the uncalibrated, online estimate of how much error a change stands for.
    """

    observed: deque[tuple[float, float]]
    skipped: int = 0
    accumulated: float = 0.0
    last_change: float = math.inf

    @classmethod
    def empty(cls, window: int) -> Track:
        """A track that has seen nothing and keeps `window` observations."""
        return cls(deque(maxlen=window))

    def copy(self) -> Track:
        """An independent copy, for the hand-over from the full sequence to its patches."""
        return replace(self, observed=deque(self.observed, maxlen=self.observed.maxlen))

    def observe(self, error: float) -> None:
        """The last computed step turned out to need no more than `error`, at the change that was seen then."""
        if 0 < self.last_change < math.inf and math.isfinite(error):
            self.observed.append((self.last_change, error))

    def note(self, decision: Decision, decay: float) -> None:
        """Remember a decision: a computed step clears the run of skips and the error bound e <- rho e + error."""
        self.last_change = decision.change
        self.skipped = self.skipped + 1 if decision.skip else 0
        self.accumulated = decay * self.accumulated + decision.predicted_error if decision.skip else 0.0


@dataclass(frozen=True)
class Evidence:
    """What is known when a segment is entered: `change` is relative, `order` counts the stand-in's references."""

    change: float
    order: int
    track: Track = field(repr=False)

    def predicted_error(self) -> float:
        """The stand-in's error at this change, from the errors observed at other changes.

        A stand-in of order k (reuse: 1, extrapolation: 2) errs like the k-th power of the distance to its references;
        the median over the window keeps one odd step from deciding. Before anything was observed the error is taken to
        be as large as the change itself.
        """
        scaled = [error * (self.change / change) ** self.order for change, error in self.track.observed]
        return statistics.median(scaled) if scaled else self.change


def decide(evidence: Evidence, tick: Tick, config: FastCacheConfig) -> Decision:
    """Skip iff every hard limit allows it and the predicted error fits the threshold and the remaining budget."""
    if not math.isfinite(evidence.change):
        return Decision(False, "no reference" if math.isinf(evidence.change) else "not finite", evidence.change)
    predicted = evidence.predicted_error()
    reason = next(_objections(evidence.track, predicted, tick, config), None)
    return Decision(reason is None, reason or "insignificant", evidence.change, predicted)


def _objections(track: Track, predicted: float, tick: Tick, config: FastCacheConfig) -> Iterator[str]:
    if tick.step < config.warmup_steps:
        yield "warm-up"
    if tick.steps_left < config.cooldown_steps:
        yield "cool-down"
    if track.skipped >= config.max_consecutive_skips:
        yield "longest run"
    if not predicted < config.threshold:
        yield "significant"
    if config.error_decay * track.accumulated + predicted > config.error_budget:
        yield "budget"
