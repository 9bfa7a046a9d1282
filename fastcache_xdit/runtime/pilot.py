"""Chooses, request by request, which steps are computed and what stands in for the others, from what is known."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.approx.output import SEGMENT, STREAM, OutputForecast, Weights
from fastcache_xdit.approx.output_masks import OutputMasks
from fastcache_xdit.approx.output_plan import OutputPlan, is_pooled, planned
from fastcache_xdit.approx.pooled import pooled
from fastcache_xdit.goal import Goal, Known

logger = logging.getLogger(__name__)

NEAR = 2.0  # factor in the number of steps within which what was learnt still applies
NEAR_NOISE = 0.1  # of the first noise level likewise
MOST_PLANNED = 16  # calibrations and noise levels whose solutions are kept: a plan, the pooled one, and replays
FinalEffects = Callable[[], Sequence[float]]
PlanMask = Callable[[Sequence[float]], str]


@dataclass
class Pilot:
    """The plan of the running request.

    Attributes:
        goal: what the user asks for.
        calibration: what is known, of this model or pooled over others.
        effects: measures for each step of the announced request by how much an error of its output shows in the end.
        schedule: gives the mask for noise levels, instead of the goal; None to plan.
        switch: returns for noise levels the first step that another transformer takes; None if there is none. What is
            known of other models says nothing about it: that step is computed, and stand-ins do not look behind it.
        forced: the mask of the next requests, whatever the goal is: all ones while they are recorded.
        unfit: says why nothing of the running request can be stood in for, by its scheduler; empty where it can.
        mask: of the running request.
        forecast: the weights of the running request.
    """

    goal: Goal
    calibration: Calibration
    effects: FinalEffects
    schedule: PlanMask | None = None
    switch: Callable[[Sequence[float]], int | None] = lambda sigmas: None
    forced: Callable[[int], str] | None = None
    unfit: Callable[[], str] = lambda: ""
    mask: str = ""
    forecast: OutputForecast | None = None
    _switch: int | None = None
    _used: Calibration | None = None
    _told: set[tuple[int, float]] = field(default_factory=set, repr=False)
    _planned: dict[Any, tuple[Calibration, OutputPlan]] = field(default_factory=dict, repr=False)

    def begin(self, sigmas: Sequence[float]) -> None:
        """Begin a request whose steps have these noise levels."""
        self._used = self.calibration if self._applies(sigmas) else pooled()
        masks, self.forecast = self._at(tuple(sigmas))
        if self.forced:
            self.mask = self.forced(len(sigmas))
        elif self.schedule:
            self.mask = self.schedule(sigmas)
        elif self.unfit():
            self.mask = "1" * len(sigmas)
        else:
            self.mask = self.mask_for(self.goal, tuple(sigmas), masks)
        self._switch = self.switch(sigmas) if is_pooled(self._used) else None
        if self._switch:
            self.mask = with_step(self.mask, self._switch)

    def skips(self, step: int) -> bool:
        """Return whether a step of the running request shall be skipped."""
        return self.mask[step : step + 1] == "0"

    def planned_skips(self, sigmas: Sequence[float]) -> list[bool]:
        """Return which steps of the running request are skipped."""
        return [mark == "0" for mark in self.mask]

    def weights(self, step: int, computed: tuple[int, ...], sees_latents: bool) -> Weights:
        """Return the weights at a skipped step, see `OutputForecast`."""
        assert self.forecast is not None
        first = self._switch if self._switch and self._switch <= step else 0
        return self.forecast.weights(step, tuple(other for other in computed if other >= first), sees_latents)

    def mask_for(self, goal: Goal, sigmas: tuple[float, ...], masks: OutputMasks | None = None) -> str:
        """Return the mask for a goal: one that was verified for these noise levels, or else the planned one."""
        computed = goal.computed(len(sigmas), self.known(sigmas))
        verified = self.calibration.facts.get("masks", {}) if sigmas == self.calibration.sigmas else {}
        if str(computed) in verified:
            return str(verified[str(computed)])
        return (masks or self._at(sigmas).masks).mask(computed)

    def known(self, sigmas: tuple[float, ...]) -> Known:
        """Return what was measured at these noise levels."""
        return known_of(self.calibration) if sigmas == self.calibration.sigmas else Known()

    @property
    def promise(self) -> float | None:
        """PSNR in dB that was measured for the goal on the requests that were learnt from; None where it was not."""
        known = known_of(self.calibration)
        return known.promises.get(self.goal.computed(len(self.calibration.sigmas), known))

    def describe(self) -> str:
        """Say in one line what is used and what it promises; nothing where a schedule says what is skipped."""
        return "" if self.schedule else described(self.goal, self.calibration)

    def bytes_held(self) -> int:
        """Return the bytes of the moments at the noise levels that were planned for, beside those of calibrations."""
        moments = {id(part.gram): part.gram for _, plan in self._planned.values() for part in plan.forecast.halves}
        for used, _ in self._planned.values():
            for part in used.moments[SEGMENT][STREAM]:
                moments.pop(id(part.gram), None)
        return sum(gram.numel() * gram.element_size() for gram in moments.values())

    def release(self) -> None:
        """Forget all plans."""
        self._planned.clear()

    @contextlib.contextmanager
    def at(self, goal: Goal) -> Iterator[None]:
        """Take another goal for the requests inside the with block."""
        outer, self.goal = self.goal, goal
        try:
            yield
        finally:
            self.goal = outer

    def learnt(self, calibration: Calibration) -> None:
        """Plan the next requests from another calibration."""
        self.calibration = calibration

    def _applies(self, sigmas: Sequence[float]) -> bool:
        """Return whether what was learnt says something of a request: of about as many steps, from about as much noise.

        Image to image from half of the noise is another path than text to image, and moments say nothing beyond theirs.
        """
        learnt = self.calibration.sigmas
        if "requests" not in self.calibration.facts or not sigmas:
            return True
        is_near = abs(sigmas[0] - learnt[0]) <= NEAR_NOISE and 1 / NEAR <= len(sigmas) / len(learnt) <= NEAR
        kind = len(sigmas), sigmas[0]
        if not is_near and not self.forced and kind not in self._told:
            self._told.add(kind)
            logger.warning(
                "fastcache: it was learnt with %d steps from noise %.2f, and %d steps from %.2f is far from that; "
                "such requests are planned from other models",
                *(len(learnt), learnt[0], *kind),
            )
        return is_near

    def _at(self, sigmas: tuple[float, ...]) -> OutputPlan:
        effects, used = tuple(self.effects()), self._used or self.calibration
        key = (id(used), sigmas, effects)
        if key not in self._planned:
            if len(self._planned) >= MOST_PLANNED:
                self._planned.clear()
            # with the calibration, so that no other one gets its id
            self._planned[key] = used, planned(used, sigmas, effects)
        return self._planned[key][1]


def with_step(mask: str, step: int) -> str:
    """Return the mask with this step computed, in the place of the nearest computed one that is not the first."""
    if mask[step] != "0":
        return mask
    others = [other for other, mark in enumerate(mask) if mark == "1" and other > 0]
    moved = min(others, key=lambda other: abs(other - step), default=None)
    return "".join("1" if number == step else "0" if number == moved else mark for number, mark in enumerate(mask))


def known_of(calibration: Calibration) -> Known:
    """Return what a calibration's facts say, in which numbers of steps are text."""
    parts = (calibration.facts.get(name, {}) for name in ("promises", "worst", "seconds"))
    return Known(*({int(number): value for number, value in part.items()} for part in parts))


def described(goal: Goal, calibration: Calibration) -> str:
    """Say in one line what a calibration means for a goal, and what it promises."""
    facts = calibration.facts
    if "requests" not in facts:
        return f"{goal}, planned from other models; nothing is known of this one"
    steps, known = len(calibration.sigmas), known_of(calibration)
    computed = goal.computed(steps, known)
    promise = f", {known.promises[computed]:.0f} dB promised" if computed in known.promises else ""
    promise += f" (worst {known.worst[computed]:.0f})" if computed in known.worst else ""
    share = f"{computed} of {steps} steps computed{promise}"
    return f"learnt from {facts['requests']} requests on {facts['when']}: {goal}, {share}"
