"""Records the first requests of a pipeline, learns from them, and watches that what it learnt goes on to be right."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.approx.identity import fits
from fastcache_xdit.approx.output import SEGMENT
from fastcache_xdit.approx.pooled import pooled
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.home import Home
from fastcache_xdit.host.base import Host
from fastcache_xdit.host.effects import SchedulerEffects
from fastcache_xdit.host.identity import adapters, identity
from fastcache_xdit.learning.calls import Call, RecordedCall, arguments, quiet
from fastcache_xdit.learning.circumstances import WeightsWatch, adapter_scale, difference
from fastcache_xdit.learning.lesson import Lesson
from fastcache_xdit.learning.likeness import Guard, Pictures
from fastcache_xdit.learning.ranks import Ranks
from fastcache_xdit.learning.replays import Replays
from fastcache_xdit.learning.teaching import Recorded, Teaching
from fastcache_xdit.learning.trajectory import Trajectory
from fastcache_xdit.runtime.pilot import Pilot, known_of
from fastcache_xdit.runtime.session import Session
from fastcache_xdit.undo import Undo

logger = logging.getLogger(__name__)

MOST_TRIES = 5  # times `learn` requests that are recorded before it is given up
MOST_KINDS = 3  # of noise levels, of which requests are recorded side by side
DRIFT = 3.0  # dB below the worst request that was learnt from at which a model is learnt again


@dataclass
class Learner:
    """Takes part in every call of a pipeline, on every rank.

    Args:
        pipe: the pipeline.
        host: of the pipeline.
        config: how much to learn, and how often to look whether it is still right.
        session: of its transformer.
        pilot: plans its requests.
        effects: of its scheduler.
        home: where learnt calibrations are kept; None to neither read nor keep any.

    Attributes:
        learnt: what was learnt, or found in the user's folder; None until then.
        seconds: wall time that learning took, recorded requests not included.
        guard: compares some requests with the same ones computed in full.
        replays: makes calls that are watched, and recorded ones again.
    """

    pipe: Any
    host: Host
    config: FastCacheConfig
    session: Session
    pilot: Pilot
    effects: SchedulerEffects
    home: Home | None
    learnt: Calibration | None = None
    seconds: float = 0.0
    _kinds: dict[tuple[float, ...], list[Recorded]] = field(default_factory=dict)  # recorded, by noise levels
    _lessons: list[Calibration] = field(default_factory=list)  # one for each set of weights and adapters
    _tries: int = 0
    _served: int = 0
    _call: Call | None = None
    _told: set[str] = field(default_factory=set)

    def attach(self, undo: Undo) -> None:
        """Use what the user has of this model, or else begin to record, for as long as the undo log is open."""
        self.ranks = Ranks(self.host.topology)
        self.guard, self.pictures = Guard(self.ranks), Pictures(self.pipe, undo)
        self.replays = Replays(self.session, self.pilot, self.pictures)
        self.weights = WeightsWatch(self.host, looks_at_weights=self.ranks.is_alone)
        self._begin()
        undo.wrap(self.pipe, "__call__", self.around)

    def _begin(self) -> None:
        """Use what is known of these weights and adapters, or else begin to record."""
        pipeline = type(getattr(self.pipe, "module", self.pipe)).__name__
        self.identity = self.ranks.first({**identity(self.host), "pipeline": pipeline})
        kept = self.ranks.first(self._found() if self.ranks.is_first else None)
        if kept and SEGMENT in kept.moments:
            self.learnt = kept
            self.pilot.learnt(kept)
        elif self.config.learn:
            self.pilot.forced = _whole

    def _found(self) -> Calibration | None:
        """Return what was learnt here of these weights and adapters, or else what the user has of them."""
        mine = (each for each in reversed(self._lessons) if fits(each.identity, self.identity))
        return next(mine, None) or (self.home.find(self.identity) if self.home else None)

    def _begin_anew(self) -> None:
        """Forget what other weights or adapters have shown; what was learnt of them is kept."""
        self._tell("adapters or weights were changed; what was learnt of others is not used for them")
        self.learnt, self.pilot.forced, self._tries = None, None, 0
        self.pilot.learnt(pooled())
        self._kinds.clear()
        self._begin()

    @property
    def is_recording(self) -> bool:
        """Whether the next request is computed in full and recorded."""
        return self.pilot.forced is _whole

    @property
    def count(self) -> int:
        """How many requests of one kind are recorded, to be learnt from."""
        return max(map(len, self._kinds.values()), default=0)

    def around(self, call: Call, *args: Any, **kwargs: Any) -> Any:
        """Make one call of the pipeline: recorded, looked at, or as it is."""
        if self.replays.is_busy or self.session.is_bypassed:
            return call(*args, **kwargs)
        if self.weights.has_changed():
            self._begin_anew()
        if self.is_recording:
            return self._record(call, args, kwargs)
        if self.learnt and (why := difference(self.learnt, arguments(call, kwargs), adapters(self.host))):
            return self._otherwise(call, args, kwargs, why)
        self._served += 1
        if self.learnt and self.config.guard_every and self._served % self.config.guard_every == 0:
            return self._guard(call, args, kwargs, known_of(self.learnt).worst)
        return call(*args, **kwargs)

    def _record(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        recorded, trajectory, start = RecordedCall.of(args, kwargs), Trajectory(), time.perf_counter()
        result = self.replays.watched(trajectory, lambda: call(*args, **kwargs))
        seconds, scale = time.perf_counter() - start, arguments(call, kwargs).get("guidance_scale")
        self._keep(Recorded(recorded, trajectory, self.pictures.taken(), seconds, scale, adapter_scale(kwargs)))
        self._call = call
        self._tries += 1
        self.session.record.counters.recorded += 1
        if self.count >= self.config.learn:
            self._learn_if_possible()
        elif self._tries >= MOST_TRIES * self.config.learn:
            self._tell("requests are too unlike each other to learn from; they are planned from other models")
            self.pilot.forced = None
        return result

    def _learn_if_possible(self) -> None:
        """Learn; in one process, what goes wrong there does not take the request that has just been made."""
        try:
            self.learn()
        except Exception as error:
            if not self.ranks.is_alone:  # the others may wait for this rank
                raise
            self._tell(f"nothing was learnt: {error!r}; requests are planned from other models")

    def _keep(self, recorded: Recorded) -> None:
        """Keep a request with those of its noise levels, unless it went wrong or was interrupted."""
        sigmas, seen = tuple(self.session.sigmas()) if self.session.sigmas else (), recorded.trajectory.steps
        if not sigmas or self.ranks.total(torch.tensor(not recorded.is_finite or seen not in (0, len(sigmas)))):
            return
        alike = [each for each in self._kinds.get(sigmas, ()) if each.adapter_scale == recorded.adapter_scale]
        self._kinds[sigmas] = [*alike, recorded]
        if len(self._kinds) > MOST_KINDS:
            rarest = min(self._kinds, key=lambda kind: (len(self._kinds[kind]), kind == sigmas))
            del self._kinds[rarest]

    def learn(self) -> None:
        """Plan, fit and verify on the recorded requests, of which there must be one; then plan the next ones by it."""
        call = self._call
        assert call and self._kinds, "nothing is recorded"
        sigmas = max(self._kinds, key=lambda kind: len(self._kinds[kind]))
        requests, start, effects = self._kinds[sigmas], time.perf_counter(), self.effects.at(sigmas)
        before, again = pooled() if self.learnt else self.pilot.calibration, functools.partial(self.replays.again, call)
        teaching = Teaching(requests, again, self.pictures, self.ranks)
        references = [recorded.trajectory for recorded in requests]
        lesson = Lesson(sigmas, effects, references, teaching.replay, before, self.ranks)
        self._tell(f"learning from {len(requests)} requests, which takes a while, once")
        try:
            with quiet(self.pipe), self.session.record.aside():
                calibration = teaching.taught(lesson, self.pilot.goal, self.identity)
        finally:
            self.pilot.forced, self._tries = None, 0
            self._kinds.clear()
        self.seconds += time.perf_counter() - start
        self._lessons.append(calibration)
        self._use(calibration)
        if self.home and self.ranks.is_first:
            self.home.keep(calibration)

    def _use(self, calibration: Calibration) -> None:
        """Plan the next requests by what was learnt, and say so."""
        self.learnt = calibration
        self.pilot.learnt(calibration)
        self._tell(self.pilot.describe())

    def _otherwise(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any], why: str) -> Any:
        """Make a call to which what was learnt does not apply by the pooled plan."""
        self._tell(f"{why}; such requests are planned from other models")
        assert self.learnt
        self.pilot.learnt(pooled())
        try:
            return call(*args, **kwargs)
        finally:
            self.pilot.learnt(self.learnt)

    def _guard(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any], worst: Mapping[int, float]) -> Any:
        """Make a call, and the same in full beside it; learn again where they are less alike than any learnt from."""
        recorded, served = RecordedCall.of(args, kwargs), Trajectory()
        result = self.replays.watched(served, lambda: call(*args, **kwargs))
        pictures, mask = self.pictures.taken(), self.pilot.mask
        with quiet(self.pipe), self.session.record.aside():
            whole = self.replays.again(call, recorded, _whole(len(mask)), self.pilot.calibration)
        self.pilot.mask = mask
        measured = self.guard.compared(pictures, self.pictures.taken(), served, whole)
        least = worst.get(mask.count("1"), 0.0)
        if measured is not None and measured < least - DRIFT:
            self._tell(f"a request came out at {measured:.1f} dB, where the worst was {least:.1f} dB; learning again")
            self.pilot.forced = _whole
        return result

    def _tell(self, line: str) -> None:
        """Say something once, on one rank."""
        if self.ranks.is_first and line not in self._told:
            logger.warning("fastcache: %s", line)
        self._told.add(line)


def _whole(steps: int) -> str:
    return "1" * steps
