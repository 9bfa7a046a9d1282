"""Calls of a transformer that nobody names: several in one step, each for a branch of guidance, or one in each."""

from __future__ import annotations

from typing import Any

import torch


class UnnamedCalls:
    """Counts the calls between two advances of the scheduler."""

    def __init__(self) -> None:
        self._calls = 0
        self._first: Any = None  # the timestep of the first of these calls
        self._advances: bool | None = None  # whether the loop lets the scheduler advance; None: not known yet

    def begin(self) -> None:
        """Begin a request."""
        self._calls = 0

    def advanced(self) -> None:
        """Note that the scheduler advances."""
        self._calls, self._advances = 0, True

    def branch(self, timestep: Any) -> str | None:
        """Count a call and return the name of its branch; None for the first call of a step."""
        self._calls += 1
        if self._calls == 1:
            self._first = timestep
            return None
        return f"call {self._calls}" if self._repeats(timestep) else None

    def _repeats(self, timestep: Any) -> bool:
        """Return whether a further call belongs to the same step; values are compared once, before it is known."""
        if self._advances is None:
            same = bool((torch.as_tensor(timestep) == torch.as_tensor(self._first)).all())
            self._advances = None if same else False
            return same
        return self._advances
