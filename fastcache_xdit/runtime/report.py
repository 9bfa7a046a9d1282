"""What is known of a cache: while it is on, and once it is off."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.counters import Counters
from fastcache_xdit.parallel.ledger import Entry


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
        plan: one line on what is planned by, and what it promises.
        guarded: likeness in dB to the same request computed in full, of each one that was looked at (`guard_every`).
        remarks: what was computed in full although the cache is on, and why; each was logged once.
    """

    counters: Counters
    ledger: tuple[Entry, ...]
    ledgers_agree: bool | None
    bytes_held: int
    fixes: tuple[str, ...]
    plan: str = ""
    guarded: tuple[float, ...] = ()
    remarks: tuple[str, ...] = ()

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
            "plan": self.plan,
            "guarded": list(self.guarded),
            "remarks": list(self.remarks),
        }


@dataclass(frozen=True)
class Outcome:
    """What is known of a cache once it is off."""

    report: Report
    learnt: Calibration | None
    promise: float | None
    seconds_learning: float
