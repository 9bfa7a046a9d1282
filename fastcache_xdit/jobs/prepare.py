"""What a replica does before it makes images of a job that learns: it gets what was learnt, or learns it for all."""

from __future__ import annotations

import time
from collections.abc import Callable
from operator import methodcaller

from fastcache_xdit.jobs.agreement import agreed
from fastcache_xdit.jobs.desk import PAUSE, Desk
from fastcache_xdit.jobs.replica import Replica
from fastcache_xdit.telling import tell


def prepare(replica: Replica, desk: Desk | None, is_asked: Callable[[], bool], show: Callable[[], None]) -> bool:
    """Wait on every rank of a replica for what the job learns, or make it; return False where it was asked to stop.

    Arguments are those of `work`.
    """
    identity, is_new = replica.identity(), False
    while known := agreed(desk, methodcaller("learnt", identity), is_asked):
        if known.calibration:
            replica.use(known.calibration, tells=not is_new)  # who learns it says so already
            return True
        is_new = True
        if not known.is_ours:
            time.sleep(PAUSE)
        elif not _learn(replica, desk, is_asked, show):
            return False
    return False


def _learn(replica: Replica, desk: Desk | None, is_asked: Callable[[], bool], show: Callable[[], None]) -> bool:
    """Record the first batches, deliver their images, and learn; return False where it was asked to stop.

    All images are delivered before anything is learnt: a later run would plan those that are not.
    """
    if desk:
        tell("nothing is known of the model: the first images are computed in full, to learn from")
    with replica.recording() as recording:
        last = -1
        while recording.wants_more:
            task = agreed(desk, methodcaller("next_to_record", last), is_asked)
            if task is None:
                return False
            if not task.items:
                break
            last = task.items[0].batch or 0
            outcomes, figures = replica.generate(task.items)
            if desk:
                desk.deliver(outcomes, figures)
            show()
        calibration = recording.learnt()
    if desk:
        desk.keep(calibration)
    return True
