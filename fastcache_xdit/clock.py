"""Where a transformer call stands: request, CFG branch, PipeFusion patch and denoising step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

FUSED = "fused"  # both CFG branches in one batch, or no guidance at all


class Patch(NamedTuple):
    """The PipeFusion patch of one call: its number, its rows of the local sequence, and whether it is the last."""

    number: int
    rows: tuple[int, int]
    is_last: bool


class Tick(NamedTuple):
    """One call of the transformer.

    Attributes:
        branch: CFG branch.
        patch: number of the PipeFusion patch, None for a call over the full local sequence.
        step: denoising step t, 0-based and counted per request.
        num_steps: steps of the request, None where nobody announced it.
        rows: the patch's rows of the full local sequence, as (start, stop).
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

    def __str__(self) -> str:
        return f"step {self.step}" if self.patch is None else f"step {self.step}, patch {self.patch}"


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
        self._set_step: int | None = None
        self._timesteps: dict[str, float] = {}

    def begin_request(self, num_steps: int | None) -> None:
        """Start counting from step 0."""
        self.request += 1
        self.num_steps = num_steps
        self._steps.clear()
        self._timesteps.clear()

    @contextlib.contextmanager
    def in_branch(self, name: str) -> Iterator[None]:
        """Count calls inside for the CFG branch `name`."""
        outer, self.branch = self.branch, name
        try:
            yield
        finally:
            self.branch = outer

    @contextlib.contextmanager
    def at(self, step: int) -> Iterator[None]:
        """Take calls inside to be of this step, whichever came before."""
        outer, self._set_step = self._set_step, step
        try:
            yield
        finally:
            self._set_step = outer

    def starts_request(self, timestep: float) -> bool:
        """Return whether a call at `timestep`, in a loop without scheduler, is the first of a new request."""
        last = self._timesteps.get(self.branch)
        return self.request == 0 or (last is not None and timestep > last)

    def repeats(self, timestep: float) -> bool:
        """Return whether this branch was called at `timestep` just before."""
        return self._timesteps.get(self.branch) == timestep

    def finished(self, patch: Patch | None) -> bool:
        """Return whether no announced request has a step left for this branch; patches share the first one's step."""
        next_step = self._set_step if self._set_step is not None else self._steps.get(self.branch, -1) + 1
        in_step = patch is not None and patch.number != 0
        return next_step - in_step >= (self.num_steps or 0)

    @contextlib.contextmanager
    def tick(self, patch: Patch | None = None, timestep: float | None = None) -> Iterator[Tick]:
        """Advance to the next step of this branch (patches after the first stay in the step of the first)."""
        if self._set_step is not None:
            self._steps[self.branch] = self._set_step
        elif patch is None or patch.number == 0:
            self._steps[self.branch] = self._steps.get(self.branch, -1) + 1
        if timestep is not None:
            self._timesteps[self.branch] = timestep
        number, rows = (patch.number, patch.rows) if patch else (None, None)
        self.now = Tick(self.branch, number, self._steps[self.branch], self.num_steps, rows)
        try:
            yield self.now
        finally:
            self.now = None
