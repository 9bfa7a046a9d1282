"""Observers of a cached model, for calibration, training, benchmarks and reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from fastcache_xdit.approx.linear import StandIn
from fastcache_xdit.clock import Clock, Tick
from fastcache_xdit.models.spec import Streams
from fastcache_xdit.partial.balance import KeptTokens
from fastcache_xdit.runtime.call import SegmentCall
from fastcache_xdit.runtime.judge import Judge
from fastcache_xdit.segments.segment import Segment
from fastcache_xdit.undo import Undo


class Watched(NamedTuple):
    """The parts of an enabled cache that an observer may use."""

    clock: Clock
    segments: Sequence[Segment]
    stand_ins: Sequence[StandIn]
    judge: Judge


class Observer:
    """Is shown what a cache does; a subclass overrides the methods that it needs.

    Attributes:
        sees_segments: call `on_segment`, at the cost of one more estimate at each computed step.
        runs_skipped: run the blocks of skipped steps as well, to show their true output to `on_segment`. The model
            still uses the estimate.
    """

    sees_segments = False
    runs_skipped = False

    def attach(self, watched: Watched, undo: Undo) -> None:
        """Prepare to observe, before any block is patched; what is set through `undo` is undone with the cache."""

    def on_segment(self, segment: Segment, call: SegmentCall, output: Streams, estimate: Streams) -> None:
        """Receive the true output of a segment at a step, and the estimate of its stand-in.

        Called at computed steps that have a reference if `sees_segments`, and at skipped steps if `runs_skipped`.
        """

    def on_tokens(self, tick: Tick, kept: KeptTokens, scores: torch.Tensor) -> None:
        """Receive the tokens of this rank that a partial step computes, and the scores [B, N] that they were chosen by.

        `kept.put(ones, zeros)` draws them. Not called at steps whose tokens are merged.
        """
