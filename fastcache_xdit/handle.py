"""A cache that is on, and what it reports."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastcache_xdit.counters import Counters
from fastcache_xdit.errors import UsageError
from fastcache_xdit.parallel.ledger import Entry
from fastcache_xdit.runtime.session import Session
from fastcache_xdit.undo import Undo


@dataclass(frozen=True)
class Report:
    """What happened on this rank since the cache was enabled or reset.

    Attributes:
        counters: what was computed and what was not.
        ledger: decisions of the last request, in order.
        ledgers_agree: whether the ranks that must agree had the same ledger at its end; None before the first end.
        bytes_held: bytes of the tensors that the cache keeps.
        fixes: names of the defects of xDiT that are cured while the cache is on.
    """

    counters: Counters
    ledger: tuple[Entry, ...]
    ledgers_agree: bool | None
    bytes_held: int
    fixes: tuple[str, ...]

    def __str__(self) -> str:
        return str(self.counters)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            **self.counters.to_dict(),
            "ledger": [entry._asdict() for entry in self.ledger],
            "ledgers_agree": self.ledgers_agree,
            "bytes_held": self.bytes_held,
            "fixes": list(self.fixes),
        }


class Handle:
    """A cache that is on; `disable` puts every module back as it was."""

    def __init__(self, session: Session, undo: Undo, fixes: Sequence[str], bytes_beside: Callable[[], int]) -> None:
        self._session = session
        self._undo = undo
        self._fixes = tuple(fixes)
        self._bytes_beside = bytes_beside

    def disable(self) -> None:
        """Restore every module that was touched and free the cached tensors; a second call does nothing."""
        self._undo.close()
        self._session.driver.reset()

    def reset(self) -> None:
        """Forget references and counts; the next step is computed."""
        self._session.driver.reset()
        self._session.record.counters.clear()

    def branch(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Take calls inside to be of the CFG branch `name`: for loops that call the transformer once per branch."""
        return self._session.clock.in_branch(name)

    def focus(self, mask: Any) -> None:
        """Say what an edit may change: with `tokens.score: region`, what partial steps compute.

        Args:
            mask: [H, W] of the picture's shape at any resolution, nonzero inside; an array, a tensor or a PIL image.
        Raises:
            UsageError: the cache computes no region.
        """
        import numpy as np
        import torch

        partial = self._session.driver.partial
        if partial is None or partial.options.score != "region":
            raise UsageError("there is no region to compute", "set tokens.score=region")
        partial.focus(torch.as_tensor(np.asarray(mask)))

    def report(self) -> Report:
        """Return counts and decisions of this rank; communicates nothing."""
        driver, record = self._session.driver, self._session.record
        held = driver.bytes_held() + self._bytes_beside()
        return Report(record.counters, tuple(record.ledger.entries), self._session.ledgers_agree, held, self._fixes)
