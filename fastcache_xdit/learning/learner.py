"""Records the first requests of a pipeline, learns from them, and hands what it learnt to the pilot."""

from __future__ import annotations

import datetime
import functools
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.approx.output import SEGMENT
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.goal import Goal
from fastcache_xdit.home import Home
from fastcache_xdit.host.base import Host
from fastcache_xdit.host.effects import SchedulerEffects
from fastcache_xdit.host.identity import identity
from fastcache_xdit.learning.calls import Call, RecordedCall, intercept, quiet
from fastcache_xdit.learning.lesson import Lesson, Trial
from fastcache_xdit.learning.pictures import Pictures, mean_psnr, squared_difference
from fastcache_xdit.learning.ranks import Ranks
from fastcache_xdit.learning.trajectory import Trajectory
from fastcache_xdit.runtime.pilot import Pilot, known_of
from fastcache_xdit.runtime.session import Session
from fastcache_xdit.undo import Undo

logger = logging.getLogger(__name__)


@dataclass
class _Recorded:
    """A request that was computed in full."""

    call: RecordedCall
    trajectory: Trajectory
    pictures: torch.Tensor | None
    seconds: float


@dataclass
class Learner:
    """Takes part in every call of a pipeline, on every rank.

    Args:
        pipe: the pipeline.
        host: of the pipeline.
        config: how much to learn.
        session: of its transformer.
        pilot: plans its requests.
        effects: of its scheduler.
        home: where calibrations are found and kept.

    Attributes:
        learnt: what was learnt, or found in the user's folder; None until then.
    """

    pipe: Any
    host: Host
    config: FastCacheConfig
    session: Session
    pilot: Pilot
    effects: SchedulerEffects
    home: Home
    _recorded: list[_Recorded] = field(default_factory=list)
    _sigmas: tuple[float, ...] = ()
    _busy: bool = False
    _call: Call | None = None
    learnt: Calibration | None = None

    def attach(self, undo: Undo) -> None:
        """Use what the user has of this model, or else begin to record, for as long as the undo log is open."""
        self.ranks = Ranks(self.host.topology)
        self.identity = self.ranks.first(identity(self.host))
        kept = self.ranks.first(self.home.find(self.identity) if self.ranks.is_first else None)
        if kept and SEGMENT in kept.moments:
            self.use(kept)
        elif self.config.learn:
            self.pictures = Pictures(self.pipe, undo)
            self.pilot.forced = _whole
            intercept(self.pipe, self.around, undo)

    @property
    def is_recording(self) -> bool:
        """Whether the next request is computed in full and recorded."""
        return self.pilot.forced is _whole

    @property
    def count(self) -> int:
        """How many requests are recorded, to be learnt from."""
        return len(self._recorded)

    def around(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make one call of the pipeline, recorded while there is something to learn."""
        if self._busy or not self.is_recording:
            return call(*args, **kwargs)
        recorded = RecordedCall.of(args, kwargs)
        trajectory, start = Trajectory(), time.perf_counter()
        result = self._watched(trajectory, lambda: call(*args, **kwargs))
        self._keep(_Recorded(recorded, trajectory, self.pictures.taken(), time.perf_counter() - start))
        self._call = call
        if self.count == self.config.learn:
            self.learn()
        return result

    def _watched(self, trajectory: Trajectory, make: Callable[[], Any]) -> Any:
        self.session.watch, self._busy = trajectory, True
        try:
            return make()
        finally:
            self.session.watch, self._busy = None, False

    def _keep(self, recorded: _Recorded) -> None:
        """Keep a request, unless its noise levels are others than those of the first one, or it went wrong."""
        sigmas = tuple(self.session.sigmas()) if self.session.sigmas else ()
        if sigmas and self.ranks.total(torch.tensor(not _is_finite(recorded))):
            return
        self._sigmas = self._sigmas or sigmas
        if sigmas and sigmas == self._sigmas:
            self._recorded.append(recorded)

    def learn(self) -> None:
        """Plan, fit and verify on the recorded requests, of which there must be one; then plan the next ones by it."""
        call = self._call
        assert call and self._recorded, "nothing is recorded"
        trajectories = [recorded.trajectory for recorded in self._recorded]
        effects, before = self.effects.at(self._sigmas), self.pilot.calibration
        replay = functools.partial(self._replay, call)
        lesson = Lesson(self._sigmas, effects, trajectories, replay, before, self.ranks)
        try:
            with quiet(self.pipe):
                calibration = self._taught(lesson, call)
        finally:
            self.pilot.forced = None
            self._recorded.clear()
        self.use(calibration)
        if self.ranks.is_first:
            self.home.keep(calibration)

    def use(self, calibration: Calibration) -> None:
        """Plan the next requests by what was learnt, and say so."""
        self.learnt = calibration
        self.pilot.learnt(calibration)
        if self.ranks.is_first:
            logger.warning("fastcache: %s", self.pilot.describe())

    def _taught(self, lesson: Lesson, call: Call) -> Calibration:
        """Return what the lesson teaches for the goal, with what it promises."""
        calibration = replace(lesson.calibration, identity=self.identity, facts=self._facts())
        for computed in numbers(self.pilot.goal, calibration):
            self._promise(calibration, lesson.best(computed), call)
        return calibration

    def _promise(self, calibration: Calibration, trial: Trial, call: Call) -> None:
        """Make the recorded requests once more, decoded, and note what their pictures promise and their time."""
        computed = str(trial.mask.count("1"))
        known, sums, seconds = replace(calibration, refits=trial.refits), [], []
        for recorded in self._recorded:
            start = time.perf_counter()
            self._again(call, recorded, trial.mask, known)
            seconds.append(time.perf_counter() - start)
            sums.append(self.ranks.total(squared_difference(self.pictures.taken(), recorded.pictures)))
        calibration.refits.update(trial.refits)
        facts = calibration.facts
        facts["masks"][computed] = trial.mask
        facts["latents_db"][computed] = round(trial.decibels, 2)
        facts["seconds"][computed] = self.ranks.first(sum(seconds) / len(seconds))
        if (promise := mean_psnr(sums)) is not None:
            facts["promises"][computed] = round(promise, 2)

    def _replay(self, call: Call, index: int, mask: str, known: Calibration) -> Trajectory:
        return self._again(call, self._recorded[index], mask, known, output_type="latent")

    def _again(self, call: Call, recorded: _Recorded, mask: str, known: Calibration, **changes: Any) -> Trajectory:
        trajectory, outer = Trajectory(), self.pilot.calibration
        self.pilot.learnt(known)
        self.pilot.forced = lambda steps: mask
        try:
            self._watched(trajectory, lambda: recorded.call.again(call, **changes))
        finally:
            self.pilot.learnt(outer)
        return trajectory

    def _facts(self) -> dict[str, Any]:
        whole = self.ranks.first(sum(one.seconds for one in self._recorded) / len(self._recorded))
        steps = len(self._sigmas)
        return {
            "requests": len(self._recorded), "when": datetime.date.today().isoformat(), "steps": steps,
            "masks": {}, "promises": {}, "latents_db": {}, "seconds": {str(steps): whole},
        }  # fmt: skip


def numbers(goal: Goal, calibration: Calibration) -> Iterator[int]:
    """Yield the numbers of computed steps to verify for a goal; facts of the calibration grow between them."""
    steps = len(calibration.sigmas)
    if goal.kind == "psnr":
        yield from _bisected(goal.value, steps, calibration)
        return
    tried = {steps}
    while (computed := goal.computed(steps, known_of(calibration))) not in tried:
        tried.add(computed)
        yield computed


def _bisected(psnr: float, steps: int, calibration: Calibration) -> Iterator[int]:
    too_few, enough = 0, steps
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        yield middle
        if known_of(calibration).promises.get(middle, 0.0) >= psnr:
            enough = middle
        else:
            too_few = middle


def _is_finite(recorded: _Recorded) -> bool:
    trajectory, pictures = recorded.trajectory, recorded.pictures
    seen = [*(trajectory.latents()[-1:] if trajectory.steps else ()), *(() if pictures is None else (pictures,))]
    return all(bool(values.isfinite().all()) for values in seen)


def _whole(steps: int) -> str:
    return "1" * steps
