"""One segment during one call of the transformer."""

from __future__ import annotations

from typing import NamedTuple

from fastcache_xdit.clock import Tick
from fastcache_xdit.decision.evidence import Decision
from fastcache_xdit.models.spec import Streams
from fastcache_xdit.partial.steps import Part
from fastcache_xdit.segments.segment import Segment
from fastcache_xdit.segments.state import SegmentState

Stateful = tuple[Segment, SegmentState]


class SegmentCall(NamedTuple):
    """What is known of a segment from the moment it is entered.

    Attributes:
        tick: where the call stands.
        state: what the segment keeps for this branch and patch.
        decision: what is done with it.
        entered: the streams that entered its first block.
        part: the tokens of a partial step, else None.
    """

    tick: Tick
    state: SegmentState
    decision: Decision
    entered: Streams
    part: Part | None = None


def place_of(tick: Tick, pairs: list[Stateful]) -> str:
    """Return words for an error: which step, and the first block of the segments."""
    return f"{tick}, block {pairs[0][0].name}"
