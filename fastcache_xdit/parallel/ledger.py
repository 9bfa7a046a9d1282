"""What this rank decided, in order, and a running digest that agreeing ranks compare."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

STAMP_BITS = 52  # a stamp travels inside a float64, which holds integers up to 2**53 exactly


class Entry(NamedTuple):
    """One decision; `segment` is the global name of its first block.

    `tokens` is how many tokens of this rank a partial step computes, None at other steps.
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
        """The part that every layout must agree on; statistics and shares differ between layouts."""
        return (self.step, self.branch, self.patch, self.segment, self.skip, self.partial)


class Ledger:
    """Decisions of the current request; the digest runs over everything that they were made from.

    `premise` is what the ranks must have in common before the first decision: configuration and segments.
    """

    def __init__(self, premise: str = "") -> None:
        self.premise = premise
        self.entries: list[Entry] = []
        self.begin_request()

    def begin_request(self) -> None:
        """Start a new page: entries and digest of the last request are dropped."""
        self.entries = []
        self._digest = hashlib.blake2b(self.premise.encode(), digest_size=8)

    def record(self, entry: Entry) -> None:
        """Add one decision."""
        self.entries.append(entry)
        self._digest.update(repr(entry).encode())

    def amend(self, **changes: Any) -> None:
        """Complete the last decision by what was found out when it was carried out."""
        self.entries[-1] = self.entries[-1]._replace(**changes)
        self._digest.update(repr(changes).encode())

    @property
    def stamp(self) -> int:
        """The digest as an integer below 2**52."""
        return self.stamp_with()

    def stamp_with(self, *facts: object) -> int:
        """The stamp, over what the next decision will be made from as well; facts count by their `repr`."""
        digest = self._digest.copy()
        for fact in facts:
            digest.update(repr(fact).encode())
        return int.from_bytes(digest.digest(), "big") >> (64 - STAMP_BITS)
