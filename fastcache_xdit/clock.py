"""The position of a transformer call: its request, CFG branch, PipeFusion patch and denoising step."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import NamedTuple

FUSED = "fused"  # both CFG branches in one batch, or no guidance at all


class Patch(NamedTuple):
    """A PipeFusion patch: its number, its rows (start, stop) of the local sequence, and whether it is the last."""

    number: int
    rows: tuple[int, int]
    is_last: bool


class Tick(NamedTuple):
    """The position of one call of the transformer.

    Attributes:
        branch: name of the CFG branch.
        patch: number of the PipeFusion patch, None for a call over the full local sequence.
        step: denoising step of the request, from 0.
        num_steps: number of steps of the request; None if no scheduler announced it.
        rows: rows of the full local sequence that the patch covers, as (start, stop).
    """

    branch: str
    patch: int | None
    step: int
    num_steps: int | None
    rows: tuple[int, int] | None = None

    @property
    def steps_left(self) -> float:
        """Number of steps after this one; infinite if `num_steps` is unknown."""
        return float("inf") if self.num_steps is None else self.num_steps - 1 - self.step

    def __str__(self) -> str:
        return f"step {self.step}" if self.patch is None else f"step {self.step}, patch {self.patch}"


class Clock:
    """Counts steps per CFG branch; one clock per handle.

    With a scheduler, each request is announced and its calls are counted. This avoids reading the timestep, which on a
    GPU would synchronise with the host. Without a scheduler, a changed timestep begins a new step, and one that turns
    back a new request: with most models timesteps fall during denoising, with some they rise.

    Attributes:
        request: number of the request, from 1.
        num_steps: number of its steps; None if it is unknown.
    """

    def __init__(self) -> None:
        self.request = 0
        self.num_steps: int | None = None
        self._local = threading.local()
        self._steps: dict[str, int] = {}
        self._set_step: int | None = None
        self._timesteps: dict[str, float] = {}
        self._rises: bool | None = None  # which way the timesteps of this model go, by the first two of them

    @property
    def now(self) -> Tick | None:
        """The position of the call that this thread is in; None outside, as in all other threads."""
        return getattr(self._local, "now", None)

    @property
    def branch(self) -> str:
        """The CFG branch of this thread's calls."""
        return getattr(self._local, "branch", FUSED)

    def begin_request(self, num_steps: int | None) -> None:
        """Begin a request of `num_steps` steps (None: unknown); the next call is step 0."""
        self.request += 1
        self.num_steps = num_steps
        self._steps.clear()
        self._timesteps.clear()

    @contextlib.contextmanager
    def in_branch(self, name: str) -> Iterator[None]:
        """Count the calls inside the with block for the CFG branch `name`."""
        outer, self._local.branch = self.branch, name
        try:
            yield
        finally:
            self._local.branch = outer

    @contextlib.contextmanager
    def at(self, step: int) -> Iterator[None]:
        """Assign the calls inside the with block to this step, whatever came before."""
        outer, self._set_step = self._set_step, step
        try:
            yield
        finally:
            self._set_step = outer

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Be in no call inside the with block, so that blocks run as if there were no cache."""
        outer, self._local.now = self.now, None
        try:
            yield
        finally:
            self._local.now = outer

    def starts_request(self, timestep: float) -> bool:
        """Return whether a call at `timestep` begins a new request, in a loop without a scheduler."""
        last = self._timesteps.get(self.branch)
        if last is not None and timestep != last:
            self._rises = timestep > last if self._rises is None else self._rises
        return self.request == 0 or (last is not None and (timestep < last if self._rises else timestep > last))

    def repeats(self, timestep: float) -> bool:
        """Return whether the previous call of this branch was at the same `timestep`."""
        return self._timesteps.get(self.branch) == timestep

    def finished(self, patch: Patch | None) -> bool:
        """Return whether this branch has taken all announced steps; later patches belong to the first patch's step."""
        next_step = self._set_step if self._set_step is not None else self._next()
        in_step = patch is not None and patch.number != 0
        return next_step - in_step >= (self.num_steps or 0)

    def _next(self) -> int:
        """Return the next step of this branch; one that was away goes on where the others are."""
        return max(self._steps.get(self.branch, -1) + 1, *self._steps.values(), 0)

    @contextlib.contextmanager
    def tick(self, patch: Patch | None = None, timestep: float | None = None) -> Iterator[Tick]:
        """Advance this branch to its next step during the with block; patches after the first stay in the same step."""
        if self._set_step is not None:
            self._steps[self.branch] = self._set_step
        elif patch is None or patch.number == 0:
            self._steps[self.branch] = self._next()
        if timestep is not None:
            self._timesteps[self.branch] = timestep
        number, rows = (patch.number, patch.rows) if patch else (None, None)
        self._local.now = now = Tick(self.branch, number, self._steps[self.branch], self.num_steps, rows)
        try:
            yield now
        finally:
            self._local.now = None
