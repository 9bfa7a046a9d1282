"""A replica without a model, in a process of its own: takes items, and says so, until none is left."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from torch import nn

from fastcache_xdit.host.xdit.watch import Watch
from fastcache_xdit.jobs.desk import PAUSE, StoreDesk
from fastcache_xdit.jobs.store import Store
from tests.jobs.jobs import FIGURES, outcomes


def main(folder: str, hold: str) -> None:
    """Work on a job; the first batch is held until the file `hold` is gone, if it is there, without progress."""
    desk = StoreDesk(Store(folder))
    watch = Watch(beat=desk.beat)
    with watch.following(nn.Module()):
        while (task := desk.next()).more:
            for item in task.items:
                print("took", item.id, flush=True)
            while task.items and Path(hold).exists():
                time.sleep(PAUSE)
            desk.deliver(outcomes(task.items), FIGURES)
            watch.mark()
            time.sleep(0 if task.items else PAUSE)
    desk.close()
    print("ended", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
