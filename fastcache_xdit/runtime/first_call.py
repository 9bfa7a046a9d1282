"""Stands for the driver of a model whose blocks are not known, until its first call has shown them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from fastcache_xdit.clock import Clock
from fastcache_xdit.runtime.driver import Driver
from fastcache_xdit.runtime.output import OutputDriver
from fastcache_xdit.runtime.record import Record


class FirstCall:
    """Builds the driver from the first call, of which nothing has run yet.

    Args:
        record: where decisions will be recorded.
        clock: position of the current call, for the driver as well.
        build: returns the driver for the forward with the arguments of the call.
    """

    partial = None

    def __init__(
        self, record: Record, clock: Clock, build: Callable[[functools.partial[Any]], Driver | OutputDriver]
    ) -> None:
        self.record = record
        self.clock = clock
        self._build = build
        self._sigmas: list[float] = []

    def begin(self, sigmas: Sequence[float]) -> None:
        """Begin a request whose steps have these noise levels."""
        self.plan(sigmas)

    def plan(self, sigmas: Sequence[float]) -> None:
        """Note the noise levels of the running request."""
        self._sigmas = list(sigmas)

    def driver(self, forward: functools.partial[Any]) -> Driver | OutputDriver:
        """Return the driver that takes the place of this, and begins with the first call."""
        driver = self._build(forward)
        driver.begin(self._sigmas)
        return driver

    def reset(self) -> None:
        """Forget nothing, as nothing is kept."""

    def release(self) -> None:
        """Forget nothing either."""

    def bytes_held(self) -> int:
        """Return 0."""
        return 0
