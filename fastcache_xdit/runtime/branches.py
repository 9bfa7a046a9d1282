"""Calls of a transformer that nobody names: several in one step, each for a branch of guidance, or one in each."""

from __future__ import annotations

from collections.abc import Callable


class UnnamedCalls:
    """Counts the calls of a step: those between two advances of the scheduler, or of equal inputs where none is seen.

    Attributes:
        is_stepped: whether the loop lets the scheduler advance, as far as is known.
    """

    def __init__(self) -> None:
        self._calls = 0
        self.is_stepped = False

    def begin(self) -> None:
        """Begin a request."""
        self._calls = 0

    def advanced(self) -> None:
        """Note that the scheduler advances."""
        self._calls, self.is_stepped = 0, True

    def branch(self, is_further: Callable[[], bool]) -> str | None:
        """Count a call and return the name of its branch; None for the first call of a step.

        Args:
            is_further: compares the call with the first one of the step, which waits for the device; it is asked until
                the scheduler advances for the first time.
        """
        if self._calls and not self.is_stepped and not is_further():
            self._calls = 0
        self._calls += 1
        return f"call {self._calls}" if self._calls > 1 else None
