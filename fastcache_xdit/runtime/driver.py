"""Runs a transformer with FastCache: one driver per model, stands in front of every block (method.md 1)."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

from fastcache_xdit.clock import Clock, Tick
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.decision.evidence import Decision, Track
from fastcache_xdit.models.spec import Streams
from fastcache_xdit.partial.steps import Part, PartialSteps
from fastcache_xdit.runtime.call import SegmentCall, Stateful
from fastcache_xdit.runtime.judge import Judge
from fastcache_xdit.runtime.observer import Observer
from fastcache_xdit.runtime.record import Record
from fastcache_xdit.runtime.stand_ins import StandIns
from fastcache_xdit.segments.segment import Block, Segment
from fastcache_xdit.segments.state import SegmentState
from fastcache_xdit.undo import Undo

Compute = Callable[..., Any]  # calls a block, with its own image tokens or with others instead


class Driver:
    """Measures, decides, computes or stands in, and remembers, segment by segment.

    Args:
        config: the user's.
        stand_ins: the segments, and what replaces each.
        judge: decides.
        record: where decisions and block calls are written down.
        clock: where the current call stands; calls outside a tick are computed as if there were no cache.
        partial: chooses tokens, where the config has partial steps.
        observer: sees what segments and their stand-ins give.
    """

    def __init__(
        self,
        config: FastCacheConfig,
        stand_ins: StandIns,
        judge: Judge,
        record: Record,
        clock: Clock,
        partial: PartialSteps | None,
        observer: Observer | None,
    ) -> None:
        self.config = config
        self.stand_ins = stand_ins
        self.judge = judge
        self.record = record
        self.clock = clock
        self.partial = partial
        self.observer = observer
        self.states: dict[tuple[str, int | None, int], SegmentState] = {}
        self._decisions: dict[int, Decision] = {}  # of segments that are not entered yet
        self._calls: dict[int, SegmentCall] = {}

    @property
    def segments(self) -> Sequence[Segment]:
        """What is skipped together."""
        return self.stand_ins.segments

    def attach(self, lead: Sequence[Block], undo: Undo) -> None:
        """Stand in front of all blocks of this rank, for as long as the undo log lives."""
        for block in lead:
            undo.set(block.module, "forward", self._wrapped(block, functools.partial(self._compute, block)))
        for segment in self.segments:
            for block in segment.blocks:
                undo.set(block.module, "forward", self._wrapped(block, functools.partial(self._run, segment, block)))
        if self.partial:
            self.partial.attach(self.segments, undo)

    def begin(self, sigmas: Sequence[float]) -> None:
        """Begin a request; `sigmas` are the noise levels of its steps, empty in a user's own loop."""
        self.reset()
        self.judge.begin(sigmas)
        self.stand_ins.begin(sigmas)

    def reset(self) -> None:
        """Forget every reference: the next step is computed."""
        self.states.clear()
        self._decisions.clear()
        self._calls.clear()
        if self.partial:
            self.partial.clear()

    def bytes_held(self) -> int:
        """Return the bytes of the cached tensors."""
        beside = self.partial.bytes_held() if self.partial else 0
        return sum(state.bytes_held() for state in self.states.values()) + beside

    def rebase(self, entered: Streams, patch: int | None) -> None:
        """Count what a computed step added from the states on that entered an earlier pipeline stage."""
        self.states[self.clock.branch, patch, 0].rebase(entered)

    def skip_elsewhere(self, tick: Tick) -> None:
        """Write down a skipped step that another pipeline stage takes alone."""
        entered = self._calls[0].entered
        self._decide(tick, self.segments, entered)
        for segment in self.segments:
            for block in segment.blocks:
                self.record.skipped(block, entered)

    def _wrapped(self, block: Block, run: Callable[[Streams, Compute], Any]) -> Callable[..., Any]:
        original = block.module.forward
        signature = inspect.signature(getattr(block.module, "_orig_mod", block.module).forward)

        @functools.wraps(original)
        @torch.compiler.disable(recursive=False)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if self.clock.now is None:
                return original(*args, **kwargs)
            call = signature.bind(*args, **kwargs)

            def compute(hidden_states: torch.Tensor | None = None) -> Any:
                if hidden_states is None:
                    return original(*args, **kwargs)
                changed = block.spec.with_hidden(call, hidden_states)
                return original(*changed.args, **changed.kwargs)

            return run(block.spec.read(call.arguments), compute)

        return forward

    def _compute(self, block: Block, streams: Streams, compute: Compute) -> Any:
        self.record.computed(block, streams)
        return compute()

    def _run(self, segment: Segment, block: Block, streams: Streams, compute: Compute) -> Any:
        """Compute a block, or hand its input on and let the last block of the segment give the stand-in."""
        if block is segment.blocks[0]:
            self._calls[segment.index] = self._enter(segment, streams)
        call = self._calls[segment.index]
        if call.decision.skip:
            return self._skip(segment, block, streams, call, compute)
        if call.part:
            output = self._compute_part(segment, block, call, call.part, compute)
        else:
            output = self._compute(block, streams, compute)
        if block is segment.blocks[-1]:
            self._leave(segment, call, block.spec.unpack(output))
        return output

    def _enter(self, segment: Segment, streams: Streams) -> SegmentCall:
        tick = self.clock.now
        assert tick is not None
        if segment.index == 0:
            self._decisions.clear()  # what an interrupted call left behind
        if segment.index not in self._decisions:
            self._decide(tick, self.segments if self.config.sync == "step" else [segment], streams)
        call = SegmentCall(tick, self._state(tick, segment), self._decisions.pop(segment.index), streams)
        return call if call.decision.skip or not self.partial else self._enter_partial(segment, call, self.partial)

    def _decide(self, tick: Tick, segments: Sequence[Segment], streams: Streams) -> None:
        pairs: list[Stateful] = [(segment, self._state(tick, segment)) for segment in segments]
        ruling = self.judge.decide(tick, pairs, streams)
        self.record.decided(tick, pairs, ruling)
        indices = (segment.index for segment in segments)
        self._decisions.update(zip(indices, ruling.decisions, strict=True))

    def _enter_partial(self, segment: Segment, call: SegmentCall, partial: PartialSteps) -> SegmentCall:
        """Choose the tokens of a partial step, which may turn out to be a whole one."""
        if call.decision.partial:
            estimate = self._estimate(segment, call)
            call = self.record.chosen(call, partial.choose(call.tick, call.state, call.entered, estimate))
        partial.enter(call.tick, call.part)
        return call

    def _compute_part(self, segment: Segment, block: Block, call: SegmentCall, part: Part, compute: Compute) -> Any:
        """Give the first block the kept tokens, and put what became of them among the others behind the last one."""
        self.record.computed_part(block, call, part)
        first = block is segment.blocks[0]
        output = compute(part.kept.take(call.entered.hidden_states) if first else None)
        if block is not segment.blocks[-1]:
            return output
        return block.spec.pack(part.finish(block.spec.unpack(output)))

    def _leave(self, segment: Segment, call: SegmentCall, output: Streams) -> None:
        if self.partial:
            self.partial.leave(call.tick, None if call.part else output)
        if call.part is None:
            self._learn(segment, call, output)

    def _learn(self, segment: Segment, call: SegmentCall, output: Streams) -> None:
        if self.observer and self.observer.sees_segments and call.state.holds(call.entered):
            self.observer.on_segment(segment, call, output, self._estimate(segment, call))
        learn = call.state.learn if self.config.test == "online" else call.state.keep
        learn(self.stand_ins.of(segment), call.entered, output, call.tick.step)

    def _skip(self, segment: Segment, block: Block, streams: Streams, call: SegmentCall, compute: Compute) -> Any:
        self.record.skipped(block, streams)
        observer = self.observer if self.observer and self.observer.runs_skipped else None
        output = compute() if observer else block.spec.pack(streams)
        if block is not segment.blocks[-1]:
            return output
        estimate = self._estimate(segment, call)
        if observer:
            observer.on_segment(segment, call, block.spec.unpack(output), estimate)
        return block.spec.pack(estimate)

    def _estimate(self, segment: Segment, call: SegmentCall) -> Streams:
        return call.state.stand_in(self.stand_ins.of(segment), call.entered, call.tick.step)

    def _state(self, tick: Tick, segment: Segment) -> SegmentState:
        """The state of this branch, patch and segment; a patch starts from its rows of the full sequence."""
        key = (tick.branch, tick.patch, segment.index)
        if key not in self.states:
            whole = self.states.get((tick.branch, None, segment.index))
            fresh = SegmentState(Track.empty(self.config.window))
            self.states[key] = whole.rows(*tick.rows) if whole and tick.rows else fresh
        return self.states[key]
