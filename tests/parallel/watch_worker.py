"""Worker: two ranks in step, of which one stops itself, and is continued once it is said who is waited for."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import threading
import time

import torch
import torch.distributed
from torch import nn

from fastcache_xdit.host.xdit import watch as watches
from fastcache_xdit.host.xdit.board import Board
from fastcache_xdit.host.xdit.watch import Watch
from tests.parallel.ranks import report


def main(stopped: int) -> dict:
    watches.QUIET, watches.SILENT = 1.0, 0.6 * watches.QUIET
    torch.distributed.init_process_group("gloo")
    rank, ended = torch.distributed.get_rank(), []
    processes = [None, None]
    torch.distributed.all_gather_object(processes, os.getpid())
    pipe = nn.Module()
    pipe.transformer = nn.Linear(2, 2)
    watch, told = Watch(limit=1000.0, end=ended.append), io.StringIO()
    with contextlib.redirect_stderr(told), watch.following(pipe):
        for step in range(4):
            if step == 2 and rank == stopped:
                os.kill(os.getpid(), signal.SIGSTOP)
            elif step == 2:
                _continue_once(told, processes[stopped])
            pipe.transformer(torch.ones(2))
            torch.distributed.all_reduce(torch.ones(1))
        first = Board().end(f"rank {rank}") if rank == 1 else None
        while not ended:
            time.sleep(0.1)
        torch.distributed.barrier()
    board = Board()
    met = board.all_met(7, 100.0), board.all_met(8, 1.0) if rank == 0 else _late(board)
    return {"told": told.getvalue(), "ended": ended, "first": first, "met": met}


def _continue_once(told: io.StringIO, process: int) -> None:
    """Continue the other rank from a thread of its own, once somebody is waited for: this one is stuck by then."""

    def run() -> None:
        while "waits for" not in told.getvalue():
            time.sleep(0.05)
        os.kill(process, signal.SIGCONT)

    threading.Thread(target=run, daemon=True).start()


def _late(board: Board) -> bool:
    while not board._store.check(["met/8"]):
        time.sleep(0.1)
    return board.all_met(8, 100.0)


report(main)
