"""What users expect to hear: that a cache is on, and what came of it."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from contextvars import ContextVar

from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.options import changed

logger = logging.getLogger("fastcache_xdit")
_is_quiet: ContextVar[bool] = ContextVar("is_quiet", default=False)
_is_rehearsal: ContextVar[bool] = ContextVar("is_rehearsal", default=False)


class _Unheard(logging.StreamHandler):  # type: ignore[type-arg]
    """Write to the terminal what a program without logging of its own would not show."""

    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger().handlers:
            self.stream = sys.stderr
            super().emit(record)


def tell(line: str) -> None:
    """Log a line at level INFO; it is shown also where the program has not set up logging.

    `logging.getLogger("fastcache_xdit").setLevel(logging.WARNING)` silences it.
    """
    if _is_quiet.get():
        return
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
        logger.addHandler(_Unheard())
    logger.info("fastcache: %s", line)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Tell nothing inside the with block, where caches are switched on that the user did not ask for one by one."""
    token = _is_quiet.set(True)
    try:
        yield
    finally:
        _is_quiet.reset(token)


@contextlib.contextmanager
def rehearsal() -> Iterator[None]:
    """Tell nothing inside the with block, and remark on no request either: it is not one that the user made."""
    token = _is_rehearsal.set(True)
    try:
        with quiet():
            yield
    finally:
        _is_rehearsal.reset(token)


def is_rehearsal() -> bool:
    """Return whether requests are not the user's own, as inside `rehearsal`."""
    return _is_rehearsal.get()


def in_words(config: FastCacheConfig, plan: str, is_recording: bool) -> str:
    """Say in one line what a cache is going to do: its plan, or else the options that differ from the defaults."""
    if not plan:
        return ", ".join(f"{name} {value}" for name, value in changed(config).items())
    recorded = f"; the first {config.learn} requests are computed in full, to learn from" if is_recording else ""
    return f"{plan}{recorded}"
