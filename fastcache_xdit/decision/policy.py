"""When a block may be skipped: plain numbers in, a decision out (no torch here)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from fastcache_xdit.clock import FUSED, Tick
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.decision.significance import Finding, SignificanceTest, Unasked


class Decision(NamedTuple):
    """What to do with one segment at one tick, and why: skip it, compute a part of its tokens, or compute it whole."""

    skip: bool
    reason: str
    change: float = math.inf
    predicted_error: float = math.inf
    partial: bool = False


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
        """Remember a decision: a computed step clears the run of skips and the error bound e <- rho e + error.

        A partial step counts as a skipped one: most of its tokens are.
        """
        spared = decision.skip or decision.partial
        self.last_change = decision.change
        self.skipped = self.skipped + 1 if spared else 0
        self.accumulated = decay * self.accumulated + decision.predicted_error if spared else 0.0

    def correct(self, decision: Decision) -> None:
        """A step noted as partial was computed whole, unless `decision` still says that it was partial."""
        if not decision.partial:
            self.note(decision, 0.0)


@dataclass(frozen=True)
class Evidence:
    """What is known when a segment is entered.

    `change` is relative, `motion` the relative variance of the tokens' saliencies, `order` counts the stand-in's
    references, `scheduled` says that the schedule wants this step computed, `scheduled_part` that it wants a part.
    """

    change: float
    order: int
    track: Track = field(repr=False)
    motion: float = 0.0
    scheduled: bool = False
    scheduled_part: bool = False


def decide(evidence: Evidence, tick: Tick, config: FastCacheConfig, test: SignificanceTest) -> Decision:
    """Skip iff schedule, every hard limit, the test and the remaining error budget allow it.

    Where only a scheduled part or, with `tokens.when: significant`, the test objects, some tokens are computed.
    """
    change, track = evidence.change, evidence.track
    if not math.isfinite(change):
        return Decision(False, "no reference" if math.isinf(change) else "not finite", change)
    finding = test.ask(tick.step, change, evidence.motion, evidence.order, track.observed, track.skipped)
    objections = list(_objections(evidence, finding, tick, config))
    partial = bool(objections) and set(objections) <= _met_by_a_part(config)
    reason = objections[0] if objections else "insignificant"
    return Decision(not objections, reason, change, finding.predicted_error, partial)


def foreseen(marks: str, config: FastCacheConfig) -> list[bool]:
    """Which steps are skipped where marks and hard limits decide alone (`test: none`), told before any of them."""
    track, found, references = Track.empty(config.window), [], 0
    for step, mark in enumerate(marks):
        change = 0.0 if references else math.inf
        evidence = Evidence(change, references, track, scheduled=mark == "1", scheduled_part=mark == "p")
        decision = decide(evidence, Tick(FUSED, None, step, len(marks)), config, Unasked())
        track.note(decision, config.error_decay)
        references += not decision.skip
        found.append(decision.skip)
    return found


def _met_by_a_part(config: FastCacheConfig) -> set[str]:
    """The objections that computing some of the tokens meets."""
    if config.tokens is None:
        return set()
    return {"schedule, part", "significant"} if config.tokens.when == "significant" else {"schedule, part"}


def _objections(evidence: Evidence, finding: Finding, tick: Tick, config: FastCacheConfig) -> Iterator[str]:
    track = evidence.track
    if tick.step < config.warmup_steps:
        yield "warm-up"
    if tick.steps_left < config.cooldown_steps:
        yield "cool-down"
    if evidence.scheduled:
        yield "schedule"
    if evidence.scheduled_part:
        yield "schedule, part"
    if track.skipped >= config.max_consecutive_skips:
        yield "longest run"
    if finding.significant:
        yield "significant"
    if config.error_decay * track.accumulated + finding.predicted_error > config.error_budget:
        yield "budget"
