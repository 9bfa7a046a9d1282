"""The rule for when a segment may be skipped: plain numbers in, a decision out; no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator

from fastcache_xdit.clock import FUSED, Tick
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.decision.evidence import Decision, Evidence, Track
from fastcache_xdit.decision.schedule import share_at
from fastcache_xdit.decision.significance import NoTest, SignificanceTest, Verdict
from fastcache_xdit.goal import Goal


def decide(evidence: Evidence, tick: Tick, config: FastCacheConfig, test: SignificanceTest) -> Decision:
    """Skip if and only if the schedule, every hard limit, the test and the remaining error budget allow it.

    If the only objection is the mark of a partial step or, with `tokens.when: significant`, the test, the step is
    partial.
    """
    change = evidence.change
    if not math.isfinite(change):
        return Decision(False, "no reference" if math.isinf(change) else "not finite", change)
    verdict = test.ask(evidence, tick)
    objections = list(_objections(evidence, verdict, tick, config))
    partial = bool(objections) and set(objections) <= _met_by_a_part(config)
    reason = objections[0] if objections else "insignificant"
    return Decision(not objections, reason, change, verdict.predicted_error, partial)


def replanned(config: FastCacheConfig, num_steps: int) -> Goal | None:
    """Return what a schedule over whole calls asks for at a number of steps that it has no mask for, else None."""
    if config.granularity != "output" or not config.schedule or num_steps in config.schedule:
        return None
    return Goal(value=share_at(config.schedule, num_steps))


def planned_skips(marks: str, config: FastCacheConfig) -> list[bool]:
    """Return which steps will be skipped where marks and hard limits alone decide (`test: none`)."""
    track, skipped, references = Track(), [], 0
    for step, mark in enumerate(marks):
        change = 0.0 if references else math.inf
        evidence = Evidence(change, references, track, scheduled=mark == "1", scheduled_part=mark == "p")
        decision = decide(evidence, Tick(FUSED, None, step, len(marks)), config, NoTest())
        track.note(decision, config.error_decay)
        references += not decision.skip
        skipped.append(decision.skip)
    return skipped


def _met_by_a_part(config: FastCacheConfig) -> set[str]:
    """Return the objections that a partial step satisfies."""
    if config.tokens is None:
        return set()
    return {"schedule, part", "significant"} if config.tokens.when == "significant" else {"schedule, part"}


def _objections(evidence: Evidence, verdict: Verdict, tick: Tick, config: FastCacheConfig) -> Iterator[str]:
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
    if verdict.significant:
        yield "significant"
    if config.error_decay * track.accumulated + verdict.predicted_error > config.error_budget:
        yield "budget"
