"""Judges: one decision for each segment at each tick, the same on all ranks that must agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from fastcache_xdit.clock import Tick
from fastcache_xdit.decision.evidence import Decision
from fastcache_xdit.models.spec import Streams
from fastcache_xdit.parallel.consensus import Consensus
from fastcache_xdit.parallel.ledger import Ledger
from fastcache_xdit.runtime.call import SegmentWithState, place_of
from fastcache_xdit.runtime.rules import Rules
from fastcache_xdit.segments.sums import ChangeSums


class Ruling(NamedTuple):
    """One decision per segment; `agreed` is true if ranks exchanged sums for them at this tick."""

    decisions: list[Decision]
    agreed: bool = False


class Judge(Protocol):
    """Decides for segments that are about to run; every rank calls it at the same places."""

    def begin(self, sigmas: Sequence[float]) -> None:
        """Begin a request whose steps have these noise levels."""

    def decide(self, tick: Tick, pairs: list[SegmentWithState], streams: Streams) -> Ruling:
        """Return one decision for each segment with its state; `streams` enter the first segment."""


class ScheduledJudge:
    """Follows the schedule alone (`test: none`), the same on every rank; nothing is measured or exchanged."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules

    def begin(self, sigmas: Sequence[float]) -> None:
        """Begin a request."""
        self.rules.begin(sigmas)

    def decide(self, tick: Tick, pairs: list[SegmentWithState], streams: Streams) -> Ruling:
        """Decide by the schedule; without references all segments are computed."""
        change = 0.0 if pairs[0][1].holds(streams) else math.inf
        return Ruling([self.rules.decide(*pair, tick, change) for pair in pairs])


class AgreeingJudge:
    """Decides from sums over all ranks that must agree, in one collective and one host read.

    Args:
        rules: turn measurements into decisions.
        consensus: exchanges the sums.
        ledger: its stamp is exchanged with them.
    """

    def __init__(self, rules: Rules, consensus: Consensus, ledger: Ledger) -> None:
        self.rules = rules
        self.consensus = consensus
        self.ledger = ledger

    def begin(self, sigmas: Sequence[float]) -> None:
        """Begin a request."""
        self.rules.begin(sigmas)

    def decide(self, tick: Tick, pairs: list[SegmentWithState], streams: Streams) -> Ruling:
        """Exchange the change on entry in one message, then decide.

        There is no early return before the collective: a rank without references joins with an infinite change. The
        sample of the batch with the largest change decides.
        """
        change = self._agree(tick, pairs, streams)
        relative, motion = change.relative.amax().item(), change.motion.amax().item()
        values = int(change.tokens.max()) * streams.hidden_states.shape[-1]
        return Ruling([self.rules.decide(*pair, tick, relative, motion, values) for pair in pairs], agreed=True)

    def _agree(self, tick: Tick, pairs: list[SegmentWithState], streams: Streams) -> ChangeSums:
        """Return the change of each sample, summed over all ranks, on the CPU."""
        local = pairs[0][1].change(streams).packed()
        memory = [(state.order, state.track) for _, state in pairs]  # ranks with other memories would decide otherwise
        total = self.consensus.agree(local, self.ledger.stamp_with(memory), place_of(tick, pairs))
        return ChangeSums.unpacked(total)
