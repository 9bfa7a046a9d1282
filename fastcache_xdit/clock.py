"""Where a transformer call stands: request, CFG branch, pipeline patch and denoising step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

FUSED = "fused"  # both CFG branches in one batch, or no guidance at all


class Tick(NamedTuple):
    """One call of the transformer.

    `step` is the denoising step t, 0-based and counted per request; `num_steps` is None where nobody announced it;
    `patch` is None for a call over the full local sequence; `rows` are the patch's rows of it, as (start, stop).
    """

    branch: str
    patch: int | None
    step: int
    num_steps: int | None
    rows: tuple[int, int] | None = None

    @property
    def steps_left(self) -> float:
        """Steps after this one; infinite where the number of steps is unknown."""
        return float("inf") if self.num_steps is None else self.num_steps - 1 - self.step


class Clock:
    """Counts steps per CFG branch; one clock per handle.

    With a scheduler the request is announced and calls are counted, which needs no look at the timestep's value (on a
    GPU that look is a host synchronisation). Without one, a changed timestep is a new step and a larger one is a new
    request, because denoising schedules decrease.
    """

    def __init__(self) -> None:
        self.request = 0
        self.num_steps: int | None = None
        self.branch = FUSED
        self.now: Tick | None = None
        self._steps: dict[str, int] = {}
        self._at: int | None = None
        self._timesteps: dict[str, float] = {}

    def begin_request(self, num_steps: int | None) -> None:
        """Start counting from step 0."""
        self.request += 1
        self.num_steps = num_steps
        self._steps.clear()
        self._timesteps.clear()

    @contextlib.contextmanager
    def in_branch(self, name: str) -> Iterator[None]:
        """Calls inside belong to the CFG branch `name`."""
        outer, self.branch = self.branch, name
        try:
            yield
        finally:
            self.branch = outer

    @contextlib.contextmanager
    def at(self, step: int) -> Iterator[None]:
        """Calls inside are of this step, whichever were before."""
        outer, self._at = self._at, step
        try:
            yield
        finally:
            self._at = outer

    def starts_request(self, timestep: float) -> bool:
        """Whether a call at `timestep`, in a loop without scheduler, is the first of a new request."""
        last = self._timesteps.get(self.branch)
        return self.request == 0 or (last is not None and timestep > last)

    def repeats(self, timestep: float) -> bool:
        """Whether this branch was called at `timestep` just before."""
        return self._timesteps.get(self.branch) == timestep

    def finished(self, patch: object) -> bool:
        """Whether no announced request has a step left for this branch; patches share the step of the first one."""
        taken = self._at if self._at is not None else self._steps.get(self.branch, -1) + 1
        in_step = patch is not None and getattr(patch, "number", 0) != 0
        return taken - in_step >= (self.num_steps or 0)

    @contextlib.contextmanager
    def tick(
        self, patch: int | None = None, rows: tuple[int, int] | None = None, timestep: float | None = None
    ) -> Iterator[Tick]:
        """Advance to the next step of this branch (patches after the first stay in the step of the first)."""
        if self._at is not None:
            self._steps[self.branch] = self._at
        elif patch in (None, 0):
            self._steps[self.branch] = self._steps.get(self.branch, -1) + 1
        if timestep is not None:
            self._timesteps[self.branch] = timestep
        self.now = Tick(self.branch, patch, self._steps[self.branch], self.num_steps, rows)
        try:
            yield self.now
        finally:
            self.now = None
