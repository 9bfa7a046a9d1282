"""What a cache has to say about requests that it did not do what was asked for in."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.decision.policy import planned_skips, replanned
from fastcache_xdit.decision.schedule import marks_at, nearest_to, uniform_mask
from fastcache_xdit.goal import Goal, Known
from fastcache_xdit.telling import is_rehearsal

logger = logging.getLogger(__name__)

UNNAMED = (
    "the transformer is called again for a step that it has taken; such calls are computed in full. Where each branch "
    "of guidance takes a call of its own, name it: with handle.branch('uncond'): ..."
)
OUTSIDE = (
    "the transformer is called more often than its scheduler was set up for steps; calls behind the last step are "
    "computed in full"
)
FOREIGN = (
    "the transformer is called for no request that this cache knows; such calls are computed in full. Requests are "
    "those of the scheduler that the cache was enabled with: enable it on the other pipeline, or anew where "
    "pipe.scheduler was replaced"
)
THREADS = (
    "several threads call the transformer at once; calls of one request are cached, and those of the others computed "
    "in full"
)
UNSEEN = (
    "a call of the pipeline was not cached: its transformer or scheduler is another one than when the cache was "
    "enabled; enable it anew"
)
OTHER_BLOCKS = (
    "a call of the transformer ran other blocks than its first call, or in another order; such requests are computed "
    "in full from there on. Take granularity: output"
)
AMPLIFIED = (
    "the scheduler draws noise and makes more of the error of an estimate than it was, as KDPM2 ancestral does in its "
    "second evaluations; such requests are computed in full. Take another scheduler, such as Euler ancestral"
)


def on_steps(config: FastCacheConfig, steps: int) -> Iterator[str]:
    """Say what a config that was meant for other numbers of steps makes of a request of this many."""
    if config.schedule and steps not in config.schedule:
        computed, nearest = _marks(config, steps).count("1"), nearest_to(config.schedule, steps)
        if replanned(config, steps):
            how = f"one is planned, with as large a share as that for {nearest}, which computes {computed} of them"
        else:
            how = f"that for {nearest} is stretched, and computes {computed} of them"
        yield (
            f"the schedule has no mask for {steps} steps: {how} ({computed / steps:.0%}). "
            "Give a mask for each number of steps"
        )
    if steps and not _may_skip(config, steps) and not _asks_for_all(config, steps):
        yield f"nothing of a request of {steps} steps can be skipped: {_hindrance(config)}"


def _marks(config: FastCacheConfig, steps: int) -> str:
    """Return the mask of a schedule, or where it will be planned one that computes as many steps."""
    if not config.schedule:
        return "0" * steps
    if goal := replanned(config, steps):
        return uniform_mask(steps, goal.computed(steps, Known()))
    return marks_at(config.schedule, steps)


def _asks_for_all(config: FastCacheConfig, steps: int) -> bool:
    """Return whether somebody meant to compute each step."""
    planned = config.test == "plan" and not config.schedule
    return config.goal == Goal("budget", 1) if planned else (config.schedule or {}).get(steps) == "1" * steps


def _may_skip(config: FastCacheConfig, steps: int) -> bool:
    if config.test == "plan" and not config.schedule:
        return config.goal.computed(steps, Known()) < steps
    marks = _marks(config, steps)
    return any(planned_skips(marks, config)) or (config.tokens is not None and "p" in marks)


def _hindrance(config: FastCacheConfig) -> str:
    if config.test == "plan" and not config.schedule:
        return f"{config.goal} computes all of them"
    names = ("warmup_steps", "cooldown_steps", "max_consecutive_skips")
    limits = ", ".join(f"{name}={getattr(config, name)}" for name in names)
    schedule = " and the schedule" if config.schedule else ""
    return f"{limits}{schedule} leave none. Take more steps, or lower warmup_steps"


class Remarks:
    """Lines that are logged once each, and kept for the report."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def make(self, line: str) -> None:
        """Log a line, unless it was made before, or is of a rehearsal."""
        if line not in self.lines and not is_rehearsal():
            self.lines.append(line)
            logger.warning("fastcache: %s", line)
