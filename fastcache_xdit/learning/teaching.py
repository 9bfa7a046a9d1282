"""Turns recorded requests into a calibration for a goal, and notes what it promises."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.goal import Goal
from fastcache_xdit.learning.calls import RecordedCall
from fastcache_xdit.learning.lesson import Attempt, Lesson
from fastcache_xdit.learning.likeness import Pictures, psnr_db, squared_difference
from fastcache_xdit.learning.ranks import Ranks
from fastcache_xdit.learning.trajectory import Trajectory
from fastcache_xdit.runtime.pilot import known_of


@dataclass(frozen=True)
class Recorded:
    """A request that was computed in full."""

    call: RecordedCall
    trajectory: Trajectory
    pictures: torch.Tensor | None
    seconds: float
    guidance_scale: float | None
    adapter_scale: float = 1.0

    @property
    def is_finite(self) -> bool:
        """Whether all that this rank saw of its end is."""
        ends = self.trajectory.latents()[-1:] if self.trajectory.steps else []
        seen = ends if self.pictures is None else [*ends, self.pictures]
        return all(bool(values.isfinite().all()) for values in seen)


@dataclass(frozen=True)
class Teaching:
    """Makes recorded requests again, and times and compares them.

    Args:
        requests: the recorded ones.
        again: makes a recorded call once more: (call, mask, what is known, changed arguments).
        pictures: what the pipeline decodes.
        ranks: the ranks that serve these requests.
    """

    requests: Sequence[Recorded]
    again: Callable[..., Trajectory]
    pictures: Pictures
    ranks: Ranks

    def replay(self, index: int, mask: str, known: Calibration) -> Trajectory:
        """Make one of the requests again, without decoding it."""
        return self.again(self.requests[index].call, mask, known, output_type="latent")

    def taught(self, lesson: Lesson, goal: Goal, identity: dict[str, Any]) -> Calibration:
        """Return what a lesson teaches for a goal, with what it promises."""
        calibration = replace(lesson.calibration, identity=identity, facts=self._facts(lesson), refits={})
        for computed in numbers(goal, calibration):
            self._promise(calibration, lesson, lesson.best(computed))
        return calibration

    def _promise(self, calibration: Calibration, lesson: Lesson, attempt: Attempt) -> None:
        """Make the requests once more, decoded, and note what their pictures promise and how long they took.

        Each is made by what the other ones taught, so that the promise holds for requests that are still to come.
        """
        computed = str(attempt.mask.count("1"))
        likeness, seconds = [], []
        for index, request in enumerate(self.requests):
            known, start = lesson.known(attempt.source, without=index), time.perf_counter()
            self.again(request.call, attempt.mask, known)
            seconds.append(time.perf_counter() - start)
            likeness.append(psnr_db(self.ranks.total(squared_difference(self.pictures.taken(), request.pictures))))
        calibration.refits.update(lesson.known(attempt.source).refits)
        facts = calibration.facts
        facts["masks"][computed] = attempt.mask
        facts["latents_db"][computed] = round(attempt.mean(), 2)
        facts["seconds"][computed] = self._mean(seconds)
        if decibels := [each for each in likeness if each is not None]:
            facts["promises"][computed] = round(sum(decibels) / len(decibels), 2)
            facts["worst"][computed] = round(min(decibels), 2)

    def _facts(self, lesson: Lesson) -> dict[str, Any]:
        steps = len(lesson.sigmas)
        return {
            "requests": len(self.requests),
            "when": datetime.date.today().isoformat(),
            "steps": steps,
            "guidance_scale": self.requests[0].guidance_scale,
            "adapter_scale": self.requests[0].adapter_scale,
            "masks": {},
            "promises": {},
            "worst": {},
            "latents_db": {},
            "seconds": {str(steps): self._mean([request.seconds for request in self.requests])},
        }

    def _mean(self, seconds: Sequence[float]) -> float:
        mean: float = self.ranks.first(sum(seconds) / len(seconds))
        return mean


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
