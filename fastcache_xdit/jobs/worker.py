"""The loop of a replica: take a batch, generate it, deliver it, until nothing is left or it is asked to stop."""

from __future__ import annotations

import time
from collections.abc import Callable

from fastcache_xdit.host.xdit import world
from fastcache_xdit.jobs.desk import Desk, Work
from fastcache_xdit.jobs.replica import Replica

PAUSE = 0.2  # seconds between two looks for items that others hold


def work(replica: Replica, desk: Desk | None, is_asked: Callable[[], bool], show: Callable[[], None]) -> bool:
    """Work on every rank of a replica until no item is left; return False where it was asked to stop before.

    Args:
        replica: the loaded model.
        desk: where items come from, on the first rank; None on the others, which follow it.
        is_asked: whether this rank was asked to stop; the batch under way is finished and delivered first.
        show: called by every rank after every look for work.
    """
    while True:
        ready = desk.next() if desk and not is_asked() else None
        stops, tasks = zip(*world.all_gather_objects((is_asked(), ready)), strict=True)
        task: Work | None = tasks[0]
        if any(stops) or task is None:
            return False
        if not task.items and not task.more:
            return True
        _carry_out(task, replica, desk)
        show()


def _carry_out(task: Work, replica: Replica, desk: Desk | None) -> None:
    if not task.items:
        time.sleep(PAUSE)
        return
    outcomes, figures = replica.generate(task.items)
    if desk:
        desk.deliver(outcomes, figures)
