"""Watching a cached model: what calibration, training, benchmarks and reports learn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from fastcache_xdit.approx.linear import StandIn
from fastcache_xdit.clock import Clock, Tick
from fastcache_xdit.models.spec import Streams
from fastcache_xdit.partial.balance import Kept
from fastcache_xdit.runtime.call import SegmentCall
from fastcache_xdit.runtime.judge import Judge
from fastcache_xdit.segments.segment import Segment
from fastcache_xdit.undo import Undo


class Watched(NamedTuple):
    """What an observer is shown of a cache when it is enabled."""

    clock: Clock
    segments: Sequence[Segment]
    stand_ins: Sequence[StandIn]
    judge: Judge


class Observer:
    """Sees what a cache does; a subclass overrides what it is interested in.

    Attributes:
        sees_segments: `on_segment` is called, which takes the time of one more stand-in at each computed step.
        runs_skipped: blocks of skipped steps run as well, so that `on_segment` sees what they would have given; their
            output is not used.
    """

    sees_segments = False
    runs_skipped = False

    def attach(self, watched: Watched, undo: Undo) -> None:
        """Prepare to watch, before any block is patched; what is set through `undo` goes when the cache does."""

    def on_segment(self, segment: Segment, call: SegmentCall, output: Streams, estimate: Streams) -> None:
        """See what a segment really gave at a step, and what its stand-in gives.

        Called, with `sees_segments`, at computed steps that have a reference, and with `runs_skipped` at skipped ones.
        """

    def on_tokens(self, tick: Tick, kept: Kept, scores: torch.Tensor) -> None:
        """See the tokens of this rank that a partial step computes, and the scores [B, N] that they were chosen by.

        `kept.put(ones, zeros)` draws them. Merged steps choose none.
        """
