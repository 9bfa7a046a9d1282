"""The state of one segment during one call of the transformer."""

from __future__ import annotations

from typing import NamedTuple

from fastcache_xdit.clock import Tick
from fastcache_xdit.decision.evidence import Decision
from fastcache_xdit.models.spec import Streams
from fastcache_xdit.partial.steps import PartialCall
from fastcache_xdit.segments.segment import Segment
from fastcache_xdit.segments.state import SegmentState

SegmentWithState = tuple[Segment, SegmentState]


class SegmentCall(NamedTuple):
    """One run of a segment, from entering its first block on.

    Attributes:
        tick: position of the transformer call.
        state: cached states of the segment for this branch and patch.
        decision: what to do with the segment.
        entered: the streams that entered its first block.
        part: the tokens of a partial step; None at other steps.
    """

    tick: Tick
    state: SegmentState
    decision: Decision
    entered: Streams
    part: PartialCall | None = None


def place_of(tick: Tick, pairs: list[SegmentWithState]) -> str:
    """Return words for an error message: the step and the first block of the segments."""
    return f"{tick}, block {pairs[0][0].name}"
