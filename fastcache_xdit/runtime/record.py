"""The one place that records decisions and their outcomes in tracks, ledger and counters."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from fastcache_xdit.clock import Tick
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.counters import Counters
from fastcache_xdit.models.spec import Streams
from fastcache_xdit.parallel.consensus import Consensus
from fastcache_xdit.parallel.ledger import Entry, Ledger
from fastcache_xdit.partial.steps import PartialCall
from fastcache_xdit.runtime.call import SegmentCall, SegmentWithState, place_of
from fastcache_xdit.runtime.judge import Ruling
from fastcache_xdit.runtime.remarks import Remarks
from fastcache_xdit.segments.segment import Block, Segment


@dataclass(frozen=True)
class Record:
    """Records what this rank decided and did.

    Attributes:
        config: the options.
        consensus: confirms decisions every `verify_every` steps.
        ledger: decisions of the current request.
        counters: totals since the cache was enabled or reset.
        remarks: what was not cached or not as asked for, and why.
    """

    config: FastCacheConfig
    consensus: Consensus
    ledger: Ledger
    counters: Counters
    remarks: Remarks = field(default_factory=Remarks)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Make requests inside the with block that neither counts nor the ledger show afterwards."""
        counters, ledger = copy.deepcopy(self.counters), self.ledger.copy()
        try:
            yield
        finally:
            vars(self.counters).update(vars(counters))
            vars(self.ledger).update(vars(ledger))

    def decided(self, tick: Tick, pairs: list[SegmentWithState], ruling: Ruling) -> None:
        """Record a ruling before it is carried out; with `verify_every`, confirm it with the other ranks.

        Raises:
            RankDivergenceError: the ranks decided differently.
        """
        for (segment, state), decision in zip(pairs, ruling.decisions, strict=True):
            state.track.note(decision, self.config.error_decay)
            self.ledger.record(Entry(tick.step, tick.branch, tick.patch, segment.name, *decision))
            self.counters.nonfinite += ruling.agreed and math.isnan(decision.change)
        every = self.config.verify_every
        if ruling.agreed and every and tick.step % every == 0:
            self.consensus.confirm(self.ledger.stamp, place_of(tick, pairs))

    def corrected(self, call: SegmentCall, segment: Segment) -> SegmentCall:
        """Record that a segment is computed after all, because its streams have another size than its references."""
        decision, tick = call.decision._replace(skip=False, reason="no reference"), call.tick
        call.state.track.correct(decision)
        self.ledger.record(Entry(tick.step, tick.branch, tick.patch, segment.name, *decision))
        return call._replace(decision=decision)

    def chosen(self, call: SegmentCall, part: PartialCall | None) -> SegmentCall:
        """Record the tokens of a partial step; None makes it a full step, because most tokens move."""
        if part:
            self.ledger.amend(tokens=part.kept.count)
            return call._replace(part=part)
        self.ledger.amend(partial=False, reason="most tokens move")
        full = call.decision._replace(partial=False)
        call.state.track.correct(full)
        return call._replace(decision=full)

    def computed(self, block: Block, streams: Streams) -> None:
        """Count a block computed on all tokens of these streams."""
        self.counters.note(block.name, _tokens(streams), computed=True)

    def computed_part(self, block: Block, call: SegmentCall, part: PartialCall) -> None:
        """Count a block computed on some of the tokens."""
        samples = len(call.entered.hidden_states)
        self.counters.note_partial(block.name, samples * part.kept.count, _tokens(call.entered))

    def skipped(self, segment: Segment, streams: Streams) -> None:
        """Count the blocks of a segment that was skipped; these streams entered it."""
        tokens = _tokens(streams)
        for block in segment.blocks:
            self.counters.note(block.name, tokens, computed=False)


def _tokens(streams: Streams) -> int:
    return streams.hidden_states.shape[:-1].numel()
