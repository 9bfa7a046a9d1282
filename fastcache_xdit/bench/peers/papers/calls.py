"""Where a call of the transformer is: its step and its branch of guidance, in a request that forgets earlier ones."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from fastcache_xdit.bench.peers.peer import Subject
from fastcache_xdit.undo import Undo


class CallCounter:
    """Count the calls of requests, each with falling timesteps. Further calls at one timestep are further branches.

    Attributes:
        step, branch: of the running call, from 0.
        begin: called when a request begins.
    """

    def __init__(self, begin: Callable[[], None]) -> None:
        self.step = self.branch = 0
        self.begin = begin
        self._timestep: float | None = None

    def count(self, timestep: float) -> None:
        """Count a call."""
        before, self._timestep = self._timestep, timestep
        if before is None or timestep > before:
            self.step = self.branch = 0
            self.begin()
        elif timestep < before:
            self.step, self.branch = self.step + 1, 0
        else:
            self.branch += 1


Call = Callable[..., Any]  # (original, states, *args, **kwargs): a call of the transformer, with its first argument


@contextlib.contextmanager
def around_calls(subject: Subject, counter: CallCounter, call: Call) -> Iterator[Undo]:
    """Let `call` make all calls of the transformer inside a with block; give the log for further changes."""

    def counted(original: Call, *args: Any, **kwargs: Any) -> Any:
        counter.count(float(kwargs["timestep"].flatten()[0]))
        return call(original, *args, **kwargs)

    with Undo() as undo:
        undo.wrap(subject.pipe.transformer, "forward", counted)
        yield undo
