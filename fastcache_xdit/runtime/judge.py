"""Judges: one decision for each segment at each tick, the same on all ranks that must agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch

from fastcache_xdit.clock import Tick
from fastcache_xdit.decision.evidence import Decision
from fastcache_xdit.models.spec import Streams
from fastcache_xdit.parallel.consensus import Consensus
from fastcache_xdit.parallel.ledger import Ledger
from fastcache_xdit.runtime.call import SegmentWithState, place_of
from fastcache_xdit.runtime.rules import Rules
from fastcache_xdit.segments.sums import ChangeSums, ErrorSums

CHANGE_COLUMNS = len(ChangeSums._fields)


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
        """Decide by the schedule; a segment without references is computed."""
        changes = [0.0 if state.holds(streams) else math.inf for _, state in pairs]
        decisions = [self.rules.decide(*pair, tick, change) for pair, change in zip(pairs, changes, strict=True)]
        return Ruling(decisions)


class AgreeingJudge:
    """Decides from sums over all ranks that must agree, in one collective and one host read.

    Args:
        rules: turn measurements into decisions.
        consensus: exchanges the sums.
        ledger: its stamp is exchanged with them.
        stage_fraction: fraction of the blocks after the lead blocks that this PipeFusion stage holds. A stage observes
            the error of its own blocks alone, while `threshold` is for all; the errors of stages are taken to be
            independent, so that their squares add up.
    """

    def __init__(self, rules: Rules, consensus: Consensus, ledger: Ledger, stage_fraction: float = 1.0) -> None:
        self.rules = rules
        self.consensus = consensus
        self.ledger = ledger
        self.stage_fraction = stage_fraction

    def begin(self, sigmas: Sequence[float]) -> None:
        """Begin a request."""
        self.rules.begin(sigmas)

    def decide(self, tick: Tick, pairs: list[SegmentWithState], streams: Streams) -> Ruling:
        """Exchange the change on entry and the errors at the last computed step in one message, then decide.

        There is no early return before the collective: a rank without references joins with an infinite change. The
        sample of the batch with the largest change decides.
        """
        change, errors = self._agree(tick, pairs, streams)
        relative, motion = change.relative.amax().item(), change.motion.amax().item()
        values = int(change.tokens.max()) * streams.hidden_states.shape[-1]
        decisions = []
        for (segment, state), error in zip(pairs, errors.relative.amax(dim=0).tolist(), strict=True):
            if not math.isnan(error):
                state.track.observe(error / math.sqrt(self.stage_fraction))
            decisions.append(self.rules.decide(segment, state, tick, relative, motion, values))
        return Ruling(decisions, agreed=True)

    def _agree(self, tick: Tick, pairs: list[SegmentWithState], streams: Streams) -> tuple[ChangeSums, ErrorSums]:
        """Return sums over all ranks, on the CPU: the change, [rows], and the segments' errors, [rows, segments]."""
        change = pairs[0][1].change(streams)
        local = torch.cat([change.packed(), *(state.take_error(streams).packed() for _, state in pairs)], dim=1)
        memory = [(state.order, state.track) for _, state in pairs]  # ranks with other memories would decide otherwise
        total = self.consensus.agree(local, self.ledger.stamp_with(memory), place_of(tick, pairs))
        errors = ErrorSums(total[:, CHANGE_COLUMNS::2], total[:, CHANGE_COLUMNS + 1 :: 2])
        return ChangeSums.unpacked(total[:, :CHANGE_COLUMNS]), errors
