"""When a block may be skipped: plain numbers in, a decision out (no torch here)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from fastcache_xdit.clock import Tick
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.decision.significance import Finding, SignificanceTest


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
    """What is known when a segment is entered.

    `change` is relative, `motion` the relative variance of the tokens' saliencies, `order` counts the stand-in's
    references, `scheduled` says that the schedule wants this step computed.
    """

    change: float
    order: int
    track: Track = field(repr=False)
    motion: float = 0.0
    scheduled: bool = False


def decide(evidence: Evidence, tick: Tick, config: FastCacheConfig, test: SignificanceTest) -> Decision:
    """Skip iff schedule, every hard limit, the test and the remaining error budget allow it."""
    change, track = evidence.change, evidence.track
    if not math.isfinite(change):
        return Decision(False, "no reference" if math.isinf(change) else "not finite", change)
    finding = test.ask(tick.step, change, evidence.motion, evidence.order, track.observed, track.skipped)
    reason = next(_objections(evidence, finding, tick, config), None)
    return Decision(reason is None, reason or "insignificant", change, finding.predicted_error)


def _objections(evidence: Evidence, finding: Finding, tick: Tick, config: FastCacheConfig) -> Iterator[str]:
    track = evidence.track
    if tick.step < config.warmup_steps:
        yield "warm-up"
    if tick.steps_left < config.cooldown_steps:
        yield "cool-down"
    if evidence.scheduled:
        yield "schedule"
    if track.skipped >= config.max_consecutive_skips:
        yield "longest run"
    if finding.significant:
        yield "significant"
    if config.error_decay * track.accumulated + finding.predicted_error > config.error_budget:
        yield "budget"
