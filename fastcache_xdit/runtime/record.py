"""The one place where decisions, and what came of them, are written down: tracks, ledger and counters."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fastcache_xdit.clock import Tick
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.counters import Counters
from fastcache_xdit.models.spec import Streams
from fastcache_xdit.parallel.consensus import Consensus
from fastcache_xdit.parallel.ledger import Entry, Ledger
from fastcache_xdit.partial.steps import Part
from fastcache_xdit.runtime.call import SegmentCall, Stateful, place_of
from fastcache_xdit.runtime.judge import Ruling
from fastcache_xdit.segments.segment import Block


@dataclass(frozen=True)
class Record:
    """What this rank decided and did.

    Attributes:
        config: the user's.
        consensus: confirms decisions every `verify_every` steps.
        ledger: decisions of the current request.
        counters: totals since the cache was enabled or reset.
    """

    config: FastCacheConfig
    consensus: Consensus
    ledger: Ledger
    counters: Counters

    def decided(self, tick: Tick, pairs: list[Stateful], ruling: Ruling) -> None:
        """Write one ruling down, before anything is done about it; ranks that agreed may confirm it."""
        for (segment, state), decision in zip(pairs, ruling.decisions, strict=True):
            state.track.note(decision, self.config.error_decay)
            self.ledger.record(Entry(tick.step, tick.branch, tick.patch, segment.name, *decision))
            self.counters.nonfinite += ruling.agreed and math.isnan(decision.change)
        every = self.config.verify_every
        if ruling.agreed and every and tick.step % every == 0:
            self.consensus.confirm(self.ledger.stamp, place_of(tick, pairs))

    def chosen(self, call: SegmentCall, part: Part | None) -> SegmentCall:
        """Write down the tokens of a step that was decided to be partial; none where most move, and it is whole."""
        if part:
            self.ledger.amend(tokens=part.kept.count)
            return call._replace(part=part)
        self.ledger.amend(partial=False, reason="most tokens move")
        whole = call.decision._replace(partial=False)
        call.state.track.correct(whole)
        return call._replace(decision=whole)

    def computed(self, block: Block, streams: Streams) -> None:
        """Count a block that is computed on all tokens of these streams."""
        self.counters.note(block.name, _tokens(streams), computed=True)

    def computed_part(self, block: Block, call: SegmentCall, part: Part) -> None:
        """Count a block that is computed on some tokens."""
        whole = call.entered.hidden_states
        self.counters.note_partial(block.name, len(whole) * part.kept.count, _tokens(call.entered))

    def skipped(self, block: Block, streams: Streams) -> None:
        """Count a block that its stand-in replaces."""
        self.counters.note(block.name, _tokens(streams), computed=False)


def _tokens(streams: Streams) -> int:
    return streams.hidden_states.shape[:2].numel()
