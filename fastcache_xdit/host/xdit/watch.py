"""Watches over ranks that work together: whom everybody waits for is said, and none of them waits for ever."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch.distributed

from fastcache_xdit.errors import FastCacheError
from fastcache_xdit.host.xdit.board import Board, Post

LOOK = 0.5  # seconds between two looks
QUIET = 30.0  # seconds without progress after which it is said who is waited for
SILENT = 10.0  # seconds without a post after which a rank counts as stopped
TRANSFORMERS = ("transformer", "transformer_2", "unet")
_DISTRIBUTED = str(Path(torch.distributed.__file__).parent)


class Watch:
    """A thread beside the work of this rank, while entered; every rank has one.

    Args:
        limit: seconds without progress, while another rank is waited for, after which the work is over; None for none.
        beat: called where there was progress since the last look.
        end: called on every rank once the work is over, with the reason; it need not return.
    """

    def __init__(
        self,
        limit: float | None = None,
        beat: Callable[[], None] = lambda: None,
        end: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.board = Board()  # for the thread alone
        self._limit = limit
        self._beat = beat
        self._end = end
        self._calls = self._seen = self._number = 0
        self._moved = self._told = time.monotonic()
        self._heard: dict[int, tuple[Post | None, float]] = {}
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def mark(self, *_: Any) -> None:
        """Note that this rank gets on: also as a hook of a module."""
        self._calls += 1

    @contextlib.contextmanager
    def following(self, pipe: Any) -> Iterator[None]:
        """Watch inside the with block, where each call of the pipeline's transformer is progress."""
        found = (getattr(pipe, name, None) for name in TRANSFORMERS)
        hooks = [module.register_forward_pre_hook(self.mark) for module in found if module is not None]
        self._moved = time.monotonic()
        self._thread.start()
        try:
            yield
        finally:
            self._left.set()
            for hook in hooks:
                hook.remove()

    def _run(self) -> None:
        with contextlib.suppress(RuntimeError):  # the store went with its process, and with it goes this one
            while not self._left.wait(LOOK):
                self._look(time.monotonic())

    def _look(self, now: float) -> None:
        self._number += 1
        self.board.post(Post(self._number, self._calls, _waits()))
        if self._calls != self._seen:
            self._seen, self._moved = self._calls, now
            self._told = now
            with contextlib.suppress(FastCacheError, OSError):  # a beat that is missed does no harm
                self._beat()
        if (reason := self.board.over()) is not None:
            self._left.set()
            self._end(reason)
        else:
            self._judge(now)

    def _judge(self, now: float) -> None:
        """Say whom everybody waits for, and end it in time: the first rank that is not silent speaks."""
        for rank, post in enumerate(self.board.posts()):
            if rank not in self._heard or self._heard[rank][0] != post:
                self._heard[rank] = post, now
        silent = {rank: now - heard for rank, (_, heard) in self._heard.items() if now - heard > SILENT}
        if any(rank not in silent for rank in range(self.board.rank)):
            return
        quiet = now - self._moved
        told = f"no progress for {quiet:.0f} s; everybody waits for "
        posts = [post for post, _ in self._heard.values()]
        if now - self._told > QUIET and (late := _late(posts, silent)):
            self._told = now
            print(f"fastcache: {told}{late}", file=sys.stderr, flush=True)
        if self._limit and quiet > self._limit and (late := _late(posts, silent)):
            self.board.end(told + late)


def _waits() -> bool:
    """Whether this process's main thread waits for other ranks."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame:
        if frame.f_code.co_filename.startswith(_DISTRIBUTED):
            return True
        frame = frame.f_back
    return False


def _late(posts: Sequence[Post | None], silent: dict[int, float]) -> str | None:
    """Name who is waited for: ranks that are silent, or at work while others wait, or behind; None where nobody is."""
    if silent:
        return ", ".join(f"rank {rank}, not heard of for {seconds:.0f} s" for rank, seconds in silent.items())
    known = {rank: post for rank, post in enumerate(posts) if post}
    working = [f"rank {rank}" for rank, post in known.items() if not post.waits]
    if 0 < len(working) < len(known):
        return ", ".join(working)
    most = max(post.calls for post in known.values())
    behind = {rank: most - post.calls for rank, post in known.items() if post.calls < most}
    return ", ".join(f"rank {rank}, {calls} calls behind" for rank, calls in behind.items()) or None
