"""Measure, agree, decide: one decision for each segment at each tick, the same on all ranks that must agree."""

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
from fastcache_xdit.runtime.call import Stateful, place_of
from fastcache_xdit.runtime.rules import Rules
from fastcache_xdit.segments.sums import ChangeSums, ErrorSums

CHANGE_COLUMNS = len(ChangeSums._fields)


class Ruling(NamedTuple):
    """One decision per segment; `agreed` says that ranks exchanged sums for them at this very tick."""

    decisions: list[Decision]
    agreed: bool = False


class Judge(Protocol):
    """Decides for segments about to be entered; every rank calls it at the same places."""

    def begin(self, sigmas: Sequence[float]) -> None:
        """Begin a request whose steps have these noise levels."""

    def decide(self, tick: Tick, pairs: list[Stateful], streams: Streams) -> Ruling:
        """Return one decision per (segment, state); `streams` enter the first of them."""


class ScheduledJudge:
    """`test: none`: every rank reads the same schedule, and nothing is measured or exchanged."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules

    def begin(self, sigmas: Sequence[float]) -> None:
        """Begin a request."""
        self.rules.begin(sigmas)

    def decide(self, tick: Tick, pairs: list[Stateful], streams: Streams) -> Ruling:
        """Read the schedule; a segment without a reference cannot be skipped."""
        changes = [0.0 if state.holds(streams) else math.inf for _, state in pairs]
        decisions = [self.rules.decide(*pair, tick, change) for pair, change in zip(pairs, changes, strict=True)]
        return Ruling(decisions)


class AgreeingJudge:
    """Decides from sums over all ranks that must agree: one collective, one host read.

    Args:
        rules: of this request.
        consensus: exchanges the sums.
        ledger: its stamp travels with them.
        stage_fraction: part of the model's blocks after the lead blocks that this PipeFusion stage holds. It sees the
            errors of its own part alone, while `threshold` is meant for the whole; errors of parts add up like
            independent ones.
    """

    def __init__(self, rules: Rules, consensus: Consensus, ledger: Ledger, stage_fraction: float = 1.0) -> None:
        self.rules = rules
        self.consensus = consensus
        self.ledger = ledger
        self.stage_fraction = stage_fraction

    def begin(self, sigmas: Sequence[float]) -> None:
        """Begin a request."""
        self.rules.begin(sigmas)

    def decide(self, tick: Tick, pairs: list[Stateful], streams: Streams) -> Ruling:
        """Exchange the change on entry and the errors of earlier computed steps in one message, then decide.

        Nothing returns before the collective: a rank without history joins it with an infinite change. The largest
        sample of the batch counts.
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

    def _agree(self, tick: Tick, pairs: list[Stateful], streams: Streams) -> tuple[ChangeSums, ErrorSums]:
        """Sums over all ranks, on the host: of the change, [rows], and of each pair's last error, [rows, pairs]."""
        change = pairs[0][1].change(streams)
        local = torch.cat([change.packed(), *(state.take_error(streams).packed() for _, state in pairs)], dim=1)
        memory = [(state.order, state.track) for _, state in pairs]  # if it differed, so would decisions on equal sums
        total = self.consensus.agree(local, self.ledger.stamp_with(memory), place_of(tick, pairs))
        errors = ErrorSums(total[:, CHANGE_COLUMNS::2], total[:, CHANGE_COLUMNS + 1 :: 2])
        return ChangeSums.unpacked(total[:, :CHANGE_COLUMNS]), errors
