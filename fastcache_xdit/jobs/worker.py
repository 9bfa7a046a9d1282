"""The loop of a replica: take a batch, generate it, deliver it, until nothing is left or it is asked to stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from operator import methodcaller

from fastcache_xdit.jobs.agreement import agreed
from fastcache_xdit.jobs.desk import PAUSE, Desk, Work
from fastcache_xdit.jobs.prepare import prepare
from fastcache_xdit.jobs.replica import Replica


def work(
    replica: Replica,
    desk: Desk | None,
    is_asked: Callable[[], bool],
    show: Callable[[], None],
    mark: Callable[[], None] = lambda: None,
) -> bool:
    """Work on every rank of a replica until no item is left; return False where it was asked to stop before.

    Args:
        replica: the loaded model.
        desk: where items come from, on the first rank; None on the others, which follow it.
        is_asked: whether this rank was asked to stop; the batch under way is finished and delivered first.
        show: called by every rank after every look for work.
        mark: called by every rank whenever it has got on.
    """

    def asked() -> bool:
        mark()
        return is_asked()

    if replica.learns and not prepare(replica, desk, asked, show):
        return False
    while task := agreed(desk, methodcaller("next"), asked):
        if not task.items and not task.more:
            return True
        _carry_out(task, replica, desk)
        show()
    return False


def _carry_out(task: Work, replica: Replica, desk: Desk | None) -> None:
    if not task.items:
        time.sleep(PAUSE)
        return
    outcomes, figures = replica.generate(task.items)
    if desk:
        desk.deliver(outcomes, figures)
