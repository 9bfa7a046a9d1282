"""Times the calls of a pipeline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from fastcache_xdit.runtime.session import Session
from fastcache_xdit.undo import Undo


def time_calls(pipe: Any, session: Session, undo: Undo) -> None:
    """Add the wall time of a pipeline's calls to the session's counts, for as long as the undo log is open.

    Learning is included; calls in which the cache is paused are not.
    """

    def call(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return original(*args, **kwargs)
        finally:
            if not session.is_bypassed:
                session.record.counters.seconds += time.perf_counter() - start

    undo.wrap(pipe, "__call__", call)
