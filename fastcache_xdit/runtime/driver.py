"""Runs a transformer with FastCache: one driver per model, five verbs per segment in the order of the paper."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from fastcache_xdit.clock import Clock, Tick
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.counters import Counters
from fastcache_xdit.decision.policy import Decision, Track
from fastcache_xdit.models.spec import Streams
from fastcache_xdit.runtime.judge import Judge
from fastcache_xdit.runtime.segment import Block, Segment
from fastcache_xdit.runtime.state import SegmentState


class _Pass(NamedTuple):
    """One segment during one call of the transformer."""

    tick: Tick
    state: SegmentState
    decision: Decision
    entered: Streams


class Driver:
    """Stands in front of every block of one transformer."""

    def __init__(
        self, config: FastCacheConfig, segments: Sequence[Segment], judge: Judge, clock: Clock, counters: Counters
    ) -> None:
        self.config = config
        self.segments = segments
        self.judge = judge
        self.clock = clock
        self.counters = counters
        self.states: dict[tuple[str, int | None, int], SegmentState] = {}
        self._plan: dict[int, Decision] = {}
        self._passes: dict[int, _Pass] = {}

    def reset(self) -> None:
        """Forget every reference: the next step is computed."""
        self.states.clear()
        self._plan.clear()
        self._passes.clear()

    def wrapped(self, segment: Segment | None, block: Block) -> Callable[..., Any]:
        """What takes the place of `block.module.forward`; `segment` is None for lead blocks, always computed."""
        original = block.module.forward
        signature = inspect.signature(getattr(block.module, "_orig_mod", block.module).forward)

        @functools.wraps(original)
        @torch.compiler.disable(recursive=False)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if self.clock.now is None:
                return original(*args, **kwargs)
            streams = block.spec.read(signature.bind(*args, **kwargs).arguments)
            return self._run(segment, block, streams, lambda: original(*args, **kwargs))

        return forward

    def _run(self, segment: Segment | None, block: Block, streams: Streams, compute: Callable[[], Any]) -> Any:
        """Compute a block, or hand its input on and let the last block of the segment give the stand-in."""
        step = self._step_of(segment, block, streams)
        skip = step is not None and step.decision.skip
        self.counters.note(block.name, streams.hidden_states.shape[:2].numel(), computed=not skip)
        output = self._pass_through(segment, block, streams, step) if skip else compute()
        if step is not None and not skip and block is segment.blocks[-1]:
            step.state.learn(self.config.stand_in, step.entered, block.spec.unpack(output), step.tick.step)
        return output

    def _step_of(self, segment: Segment | None, block: Block, streams: Streams) -> _Pass | None:
        if segment is None:
            return None
        if block is segment.blocks[0]:
            self._passes[segment.index] = self._enter(segment, streams)
        return self._passes[segment.index]

    def _pass_through(self, segment: Segment, block: Block, streams: Streams, step: _Pass) -> Any:
        if block is not segment.blocks[-1]:
            return block.spec.pack(streams)
        return block.spec.pack(step.state.stand_in(self.config.stand_in, step.entered, step.tick.step))

    def _enter(self, segment: Segment, streams: Streams) -> _Pass:
        tick = self.clock.now
        assert tick is not None
        if segment.index == 0:
            self._plan.clear()  # what an interrupted call left behind
        if segment.index not in self._plan:
            group = self.segments if self.config.sync == "step" else [segment]
            decisions = self.judge.decide(tick, [(each, self._state(tick, each)) for each in group], streams)
            self._plan.update({each.index: decision for each, decision in zip(group, decisions, strict=True)})
        return _Pass(tick, self._state(tick, segment), self._plan.pop(segment.index), streams)

    def _state(self, tick: Tick, segment: Segment) -> SegmentState:
        """The state of this branch, patch and segment; a patch starts from its rows of the full sequence."""
        key = (tick.branch, tick.patch, segment.index)
        if key not in self.states:
            whole = self.states.get((tick.branch, None, segment.index))
            fresh = SegmentState(Track.empty(self.config.window))
            self.states[key] = whole.rows(*tick.rows) if whole and tick.rows else fresh
        return self.states[key]
