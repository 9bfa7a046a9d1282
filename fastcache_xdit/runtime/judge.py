"""Judges: one decision for each segment at each tick, the same on all ranks that must agree."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch

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
        change = self.consensus.agree(*self._question(tick, pairs, streams))
        return self._ruling(tick, pairs, streams, change)

    def _question(self, tick: Tick, pairs: list[SegmentWithState], streams: Streams) -> tuple[torch.Tensor, int, str]:
        """Return what the ranks exchange: the change of each sample [B, 4], a stamp, and words for an error."""
        local = pairs[0][1].change(streams).packed()
        memory = [(state.order, state.track) for _, state in pairs]  # ranks with other memories would decide otherwise
        return local, self.ledger.stamp_with(memory), place_of(tick, pairs)

    def _ruling(
        self, tick: Tick, pairs: list[SegmentWithState], streams: Streams, sums: torch.Tensor, growth: float = 1.0
    ) -> Ruling:
        """Decide by the changes of all samples over all ranks, [B, 4] on the CPU, times `growth`."""
        change = ChangeSums.unpacked(sums)
        relative, motion = growth * change.relative.amax().item(), change.motion.amax().item()
        values = int(change.tokens.max()) * streams.hidden_states.shape[-1]
        return Ruling([self.rules.decide(*pair, tick, relative, motion, values) for pair in pairs], agreed=True)


class _Measured(NamedTuple):
    """A change that is on its way: over how many steps since the reference, and what waits for it."""

    steps: int
    arrive: Callable[[], torch.Tensor]


class AheadJudge(AgreeingJudge):
    """Decides a step from what was exchanged while the step before it computed (`sync: ahead`), so that nobody waits.

    The states are taken to go on as fast as they then moved: the change grows with the steps since the reference.
    """

    def __init__(self, rules: Rules, consensus: Consensus, ledger: Ledger) -> None:
        super().__init__(rules, consensus, ledger)
        self._measured: dict[tuple[str, int | None, int], _Measured] = {}

    def begin(self, sigmas: Sequence[float]) -> None:
        """Begin a request; what an interrupted one still had on its way is of no use."""
        super().begin(sigmas)
        self._measured.clear()

    def decide(self, tick: Tick, pairs: list[SegmentWithState], streams: Streams) -> Ruling:
        """Decide from the last exchange, and begin the next; the first two steps are computed."""
        key, computed = (tick.branch, tick.patch, pairs[0][0].index), pairs[0][1].computed
        last = self._measured.pop(key, None)
        sums = last.arrive() if last else None
        since = tick.step - computed[0] if computed else 1
        if tick.steps_left:
            arrive = self.consensus.agree_later(*self._question(tick, pairs, streams))
            self._measured[key] = _Measured(since, arrive)
        if last is None or sums is None or not computed:
            return Ruling([self.rules.decide(*pair, tick, math.inf) for pair in pairs])
        return self._ruling(tick, pairs, streams, sums, since / last.steps)
