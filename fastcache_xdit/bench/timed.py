"""Time the calls of a method."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from fastcache_xdit.host.xdit import world
from fastcache_xdit.runtime.observer import Observer, Watched
from fastcache_xdit.undo import Undo


class Shown(Observer):
    """Keep what an observer is shown when the cache is enabled."""

    watched: Watched

    def attach(self, watched: Watched, undo: Undo) -> None:
        """Keep it."""
        self.watched = watched


class Timed:
    """Time every call of one method of some objects, until `undo` is closed.

    Attributes:
        seconds: wall time of each call, in order, the device's work included.
    """

    def __init__(self, undo: Undo, targets: Sequence[Any], method: str) -> None:
        self.seconds: list[float] = []
        for target in targets:
            if isinstance(target, nn.Module):
                undo.wrap(target, method, self._call)
            else:
                undo.set(target, method, self._timed(getattr(target, method)))

    def _timed(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            return self._call(original, *args, **kwargs)

        return call

    def _call(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        world.synchronize()
        start = time.perf_counter()
        result = original(*args, **kwargs)
        world.synchronize()
        self.seconds.append(time.perf_counter() - start)
        return result
