"""The decisions of this rank in order, and a running digest that agreeing ranks compare."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

STAMP_BITS = 52  # a stamp travels inside a float64, which holds integers up to 2**53 exactly


class Entry(NamedTuple):
    """One decision.

    Attributes:
        step: denoising step.
        branch: CFG branch.
        patch: PipeFusion patch; None for the full sequence.
        segment: name of the segment's first block in the whole model.
        skip: see `Decision`, as are `reason`, `change`, `predicted_error` and `partial`.
        tokens: number of tokens of this rank that a partial step computes; None at other steps.
    """

    step: int
    branch: str
    patch: int | None
    segment: str
    skip: bool
    reason: str
    change: float
    predicted_error: float
    partial: bool = False
    tokens: int | None = None

    @property
    def choice(self) -> tuple[int, str, int | None, str, bool, bool]:
        """The part of a decision that is the same in every parallel layout; statistics and token counts may differ."""
        return (self.step, self.branch, self.patch, self.segment, self.skip, self.partial)


class Ledger:
    """The decisions of the current request, with a digest over them.

    Args:
        premise: what ranks must have in common before the first decision: config, segments and calibration.
    """

    def __init__(self, premise: str = "") -> None:
        self.premise = premise
        self.entries: list[Entry] = []
        self.begin_request()

    def begin_request(self) -> None:
        """Drop the entries and the digest of the last request."""
        self.entries = []
        self._digest = hashlib.blake2b(self.premise.encode(), digest_size=8)

    def copy(self) -> Ledger:
        """Return an independent copy."""
        other = Ledger(self.premise)
        other.entries, other._digest = list(self.entries), self._digest.copy()
        return other

    def record(self, entry: Entry) -> None:
        """Add one decision."""
        self.entries.append(entry)
        self._digest.update(repr(entry).encode())

    def amend(self, **changes: Any) -> None:
        """Update fields of the last decision with what was found when it was carried out."""
        self.entries[-1] = self.entries[-1]._replace(**changes)
        self._digest.update(repr(changes).encode())

    @property
    def stamp(self) -> int:
        """The digest as an integer below 2**52."""
        return self.stamp_with()

    def stamp_with(self, *facts: object) -> int:
        """Return the stamp of the ledger and of further facts that the next decision depends on, by their `repr`."""
        digest = self._digest.copy()
        for fact in facts:
            digest.update(repr(fact).encode())
        return int.from_bytes(digest.digest(), "big") >> (64 - STAMP_BITS)
