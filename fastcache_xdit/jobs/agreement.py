"""What a desk answers the first rank of a replica, on all of its ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastcache_xdit.host.xdit import world
from fastcache_xdit.jobs.desk import Desk


def agreed(desk: Desk | None, ask: Callable[[Desk], Any], is_asked: Callable[[], bool]) -> Any:
    """Ask the first rank's desk, and return its answer on every rank; None where any rank was asked to stop."""
    answer = ask(desk) if desk and not is_asked() else None
    stops, answers = zip(*world.all_gather_objects((is_asked(), answer)), strict=True)
    return None if any(stops) else answers[0]
