"""The end of a replica whose ranks cannot go on together: its items are left to others, and it is started again."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from pathlib import Path
from typing import NoReturn

from fastcache_xdit.errors import FastCacheError
from fastcache_xdit.host.xdit import world
from fastcache_xdit.host.xdit.board import Board
from fastcache_xdit.jobs.desk import StoreDesk
from fastcache_xdit.jobs.progress import settled
from fastcache_xdit.jobs.restart import Start, is_possible, run_again
from fastcache_xdit.jobs.stop import Stop
from fastcache_xdit.jobs.store import Store

ANSWER = 60.0  # seconds in which the first rank says how it goes on
FAILED = 1  # exit code


class Ending:
    """How this rank ends, in whichever thread finds out that it must.

    Args:
        folder: of the job.
        start: which start of the replica this is.
        stop: whether the run was asked to stop.
        replica: this replica's number.
        replicas: how many there are.

    Attributes:
        desk: what the first rank's items come from.
    """

    def __init__(self, folder: Path, start: Start, stop: Stop, replica: int, replicas: int) -> None:
        self.stop, self.replica = stop, replica
        self.desk: StoreDesk | None = None
        self._folder, self._start, self._replicas = folder, start, replicas
        self._board = Board()
        self._begun = threading.Lock()

    def say(self, reason: str) -> NoReturn:
        """End all ranks of the replica for this reason, or for that of whichever rank was first."""
        self.come(self._board.end(reason))

    def come(self, reason: str) -> NoReturn:
        """End this rank, as all others do, and start it again where that may help."""
        self._begun.acquire()  # for good: another thread waits here until the process is another one
        if world.rank() == 0:
            self._board.answer(self._next(reason))
        answer = self._board.answered(ANSWER)
        if answer:
            run_again(answer, self.replica, self._replicas)
        sys.stderr.flush()
        os._exit(FAILED)  # the main thread may be stuck for ever

    def _next(self, reason: str) -> str:
        """Leave the items to others, and say what comes next; return the next start, "" for none."""
        following = self._start.after(self._left_to_others(reason))
        again = is_possible() and following.is_worth_it and not self.stop.asked
        what = "its ranks start again" if again else "it ends; the same command goes on"
        print(f"fastcache: replica {self.replica}: {reason}; {what}", file=sys.stderr, flush=True)
        return str(following) if again else ""

    def _left_to_others(self, reason: str) -> int:
        """Give the items back, and return how many of the job are settled."""
        try:
            if self.desk:
                self.desk.abandon(reason)
            with contextlib.closing(Store(self._folder)) as store:
                return settled(store.counts())
        except (FastCacheError, OSError) as error:  # its items are free all the same, once this process is another one
            print(f"fastcache: {error}", file=sys.stderr, flush=True)
            return 0
