"""Whose turn it is: of several threads that use one transformer at once, the requests of one are cached at a time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator


class Turns:
    """Keeps apart the threads that call one transformer.

    A request belongs to the thread that began it. Another thread may begin one between two calls of the running
    request, which is over then.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._owner: int | None = None  # the thread of the running request
        self._inside: int | None = None  # the thread that is in a call of it
        self._announced: set[int] = set()

    def announce(self) -> None:
        """Note that the next call of this thread begins a request."""
        self._announced.add(threading.get_ident())

    @property
    def is_announced(self) -> bool:
        """Whether the next call of this thread begins a request."""
        return threading.get_ident() in self._announced

    @property
    def is_mine(self) -> bool:
        """Whether the running request is this thread's."""
        return self._owner == threading.get_ident()

    @property
    def is_taken(self) -> bool:
        """Whether the running request is another thread's."""
        return self._owner not in (None, threading.get_ident())

    def begin(self) -> None:
        """Begin a request of this thread."""
        self._owner = threading.get_ident()
        self._announced.discard(self._owner)

    def end(self) -> None:
        """End the request of this thread, and take back what it announced."""
        self._announced.discard(threading.get_ident())
        if self.is_mine:
            self._owner = None

    @contextlib.contextmanager
    def taken(self, begin: Callable[[], None]) -> Iterator[bool]:
        """Yield whether a call of this thread belongs to the running request, after `begin` has begun one if it does.

        While another thread is inside of a call, none can be begun: what was announced then is never cached.
        """
        me = threading.get_ident()
        with self._lock:
            is_free = self._inside in (None, me)
            if is_free:
                begin()
            else:
                self._announced.discard(me)
            is_mine = is_free and self.is_mine
            outer, self._inside = self._inside, me if is_mine else self._inside
        try:
            yield is_mine
        finally:
            if is_mine:
                self._inside = outer
