"""The handle of an enabled cache, and its report."""

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
        counters: counts of computed and skipped block calls.
        ledger: decisions of the last request, in order.
        ledgers_agree: whether all ranks that must agree ended the last request with the same ledger; None before the
            end of the first request.
        bytes_held: bytes of the tensors that the cache holds.
        fixes: names of the xDiT defects that are fixed while the cache is on.
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
    """An enabled cache; `disable` restores every module that it changed."""

    def __init__(
        self, session: Session, undo: Undo, fixes: Sequence[str], keys_values_bytes: Callable[[], int]
    ) -> None:
        self._session = session
        self._undo = undo
        self._fixes = tuple(fixes)
        self._keys_values_bytes = keys_values_bytes

    def disable(self) -> None:
        """Restore every changed module and free the cached tensors; a second call does nothing."""
        self._undo.close()
        self._session.driver.reset()

    def reset(self) -> None:
        """Forget cached states and counts; the next step is computed."""
        self._session.driver.reset()
        self._session.record.counters.clear()

    def branch(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Assign the calls inside a with block to CFG branch `name`; for loops with one call for each branch."""
        return self._session.clock.in_branch(name)

    def focus(self, mask: Any) -> None:
        """Set the region that an edit may change; with `tokens.score: region`, partial steps compute its tokens alone.

        Args:
            mask: array, tensor or PIL image [H, W], nonzero inside the region; the aspect ratio of the image, any size.
        Raises:
            UsageError: `tokens.score` is not `region`.
        """
        import numpy as np
        import torch

        partial = self._session.driver.partial
        if partial is None or partial.options.score != "region":
            raise UsageError("there is no region to compute", "set tokens.score=region")
        array = np.asarray(mask)
        if array.ndim != 2 or array.size == 0 or array.dtype.kind not in "biuf":
            raise UsageError(f"a mask is numbers of shape [H, W], not {array.dtype} of shape {list(array.shape)}")
        partial.focus(torch.from_numpy(array.astype(np.float32)))

    def report(self) -> Report:
        """Return the counts and decisions of this rank, without communication."""
        driver, record = self._session.driver, self._session.record
        bytes_held = driver.bytes_held() + self._keys_values_bytes()
        entries = tuple(record.ledger.entries)
        return Report(record.counters, entries, self._session.ledgers_agree, bytes_held, self._fixes)
