"""What ranks that work together tell each other beside their process group, in which they may be stuck."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any, NamedTuple

import torch.distributed
from torch.distributed import distributed_c10d

from fastcache_xdit.host.xdit import world

OVER, ANSWER = "over", "answer"


class Post(NamedTuple):
    """How far a rank is: `number` grows with every post, `calls` with its work; it may wait for another rank."""

    number: int
    calls: int
    waits: bool


class Board:
    """A board beside the process group of all ranks, which exists by then; each rank makes one and uses it alone."""

    def __init__(self) -> None:
        self.rank, self.size = world.rank(), world.size()
        self._store = _connection() if self.size > 1 else torch.distributed.HashStore()

    def post(self, post: Post) -> None:
        """Say how far this rank is."""
        self._store.set(f"post/{self.rank}", json.dumps(post))

    def posts(self) -> list[Post | None]:
        """Read the last post of each rank; None where there is none yet."""
        names = [f"post/{rank}" for rank in range(self.size)]
        return [Post(*json.loads(self._store.get(name))) if self._store.check([name]) else None for name in names]

    def all_met(self, number: int, seconds: float) -> bool:
        """Wait until every rank has come here with the same `number`, at most `seconds`; all get the same answer."""
        self._store.set(f"met/{number}/{self.rank}", "")
        came = self._is_there([f"met/{number}/{rank}" for rank in range(self.size)], seconds)
        return self._store.compare_set(f"met/{number}", "", "all" if came else "some") == b"all"

    def end(self, reason: str) -> str:
        """Say that the work of all ranks is over; return the reason of whoever said so first."""
        return self._store.compare_set(OVER, "", reason).decode(errors="replace")

    def over(self) -> str | None:
        """Return the reason why the work is over; None where it is not."""
        return self._store.get(OVER).decode(errors="replace") if self._store.check([OVER]) else None

    def answer(self, text: str) -> None:
        """Answer the question what comes after the end, as the first rank does."""
        self._store.set(ANSWER, text)

    def answered(self, seconds: float) -> str | None:
        """Wait for that answer; None where it does not come within `seconds`."""
        return self._store.get(ANSWER).decode() if self._is_there([ANSWER], seconds) else None

    def _is_there(self, names: list[str], seconds: float) -> bool:
        try:
            self._store.wait(names, timedelta(seconds=seconds))
        except RuntimeError:
            return False
        return True


def _connection() -> torch.distributed.Store:
    """Connect anew to where the ranks met: a thread can use it while another one waits over its own."""
    store: Any = distributed_c10d._get_default_store()
    return torch.distributed.PrefixStore("board", store.clone() if hasattr(store, "clone") else store)
