"""Runs the blocks of a transformer with FastCache (method.md 1); there is one driver per model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from fastcache_xdit.clock import Clock, Tick
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.decision.evidence import Decision
from fastcache_xdit.models.spec import Streams
from fastcache_xdit.partial.steps import PartialCall, PartialSteps
from fastcache_xdit.runtime.call import SegmentCall, SegmentWithState
from fastcache_xdit.runtime.forward import Compute, block_call
from fastcache_xdit.runtime.judge import Judge
from fastcache_xdit.runtime.observer import Observer
from fastcache_xdit.runtime.record import Record
from fastcache_xdit.runtime.remarks import OTHER_BLOCKS
from fastcache_xdit.runtime.stand_ins import StandIns
from fastcache_xdit.segments.segment import Block, Segment
from fastcache_xdit.segments.state import SegmentState
from fastcache_xdit.undo import Undo

LONGEST_ABSENCE = 3  # steps for which a branch of guidance may be away, if no fewer may be skipped in a row


class Driver:
    """Decides for each segment, computes or replaces it, and caches its states.

    Args:
        config: the options.
        stand_ins: the segments and their stand-ins.
        judge: decides.
        record: where decisions and block calls are recorded.
        clock: position of the current call; calls outside a tick are computed as if there were no cache.
        partial: chooses the tokens of partial steps; None if the config has none.
        observer: is shown the outputs of segments and stand-ins.
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
        self.new_state: Callable[[], SegmentState] = SegmentState
        self.states: dict[tuple[str, int | None, int], SegmentState] = {}
        self._decisions: dict[int, Decision] = {}  # of segments that were not entered yet
        self._calls: dict[int, SegmentCall] = {}
        self._called: dict[str, int] = {}  # the last step of each branch
        self._blocks: list[Block] = []  # of this rank, in the order in which the model runs them
        self._came: list[Block] = []  # those that the current call has run or skipped
        self._is_irregular = False  # whether a call of the running request ran other blocks than these

    @property
    def segments(self) -> Sequence[Segment]:
        """The segments of this rank."""
        return self.stand_ins.segments

    def attach(self, lead: Sequence[Block], undo: Undo) -> None:
        """Stand around the calls of all blocks of this rank, for as long as the undo log is open."""
        runs = [(block, functools.partial(self._compute, block)) for block in lead]
        for segment in self.segments:
            runs += [(block, functools.partial(self._run, segment, block)) for block in segment.blocks]
        for block, run in runs:
            come = functools.partial(self._come, block, run)
            undo.wrap(block.module, "__call__", block_call(block, self.clock, come))
        self._blocks = [block for block, _ in runs]
        if self.partial:
            self.partial.attach(self.segments, undo)

    def call(self, tick: Tick, compute: Callable[[], Any]) -> Any:
        """Run one call of the transformer, whose blocks come to this driver one by one.

        What was kept of a branch that was away for long, as with guidance in an interval, is forgotten. A call that
        runs other blocks than the model is known for runs once more in full, as the rest of its request does.
        """
        if not self._is_irregular:
            output = self._call(tick, compute)
            self._is_irregular = self._came != self._blocks
            if not self._is_irregular:
                return output
            self.record.remarks.make(OTHER_BLOCKS)
            self._forget()
        self.record.counters.bypassed_calls += 1
        with self.clock.stopped():
            return compute()

    def _call(self, tick: Tick, compute: Callable[[], Any]) -> Any:
        away = tick.step - self._called.get(tick.branch, tick.step) - 1
        if away > min(self.config.max_consecutive_skips, LONGEST_ABSENCE):
            self.states = {key: state for key, state in self.states.items() if key[0] != tick.branch}
        self._called[tick.branch] = tick.step
        self._came.clear()
        return compute()

    def handed_over(self, output: torch.Tensor, tick: Tick, latents: torch.Tensor) -> torch.Tensor:
        """Return what the scheduler shall get: the output as it is."""
        return output

    def begin(self, sigmas: Sequence[float]) -> None:
        """Begin a request whose steps have these noise levels; none in a user's own loop."""
        self.reset()
        self.plan(sigmas)

    def plan(self, sigmas: Sequence[float]) -> None:
        """Plan the running request for these noise levels."""
        self.judge.begin(sigmas)
        self.stand_ins.begin(sigmas)

    def reset(self) -> None:
        """Forget all cached states; the next step is computed."""
        self._is_irregular = False
        self._forget()

    def _forget(self) -> None:
        for kept in (self.states, self._decisions, self._calls, self._called):
            kept.clear()
        if self.partial:
            self.partial.clear()

    def bytes_held(self) -> int:
        """Return the bytes of the cached tensors, and of what was solved."""
        return sum(part.bytes_held() for part in (*self.states.values(), self.partial, self.stand_ins) if part)

    def release(self) -> None:
        """Forget all that a new request does without."""
        self.reset()
        self.stand_ins.release()

    def rebase(self, entered: Streams, patch: int | None) -> None:
        """Measure the residual of the newest computed step from `entered` on, which entered an earlier stage."""
        self.states[self.clock.branch, patch, 0].rebase(entered)

    def record_remote_skip(self, tick: Tick) -> None:
        """Record a skipped step that another pipeline stage runs alone."""
        entered = self._calls[0].entered
        self._decide(tick, self.segments, entered)
        for segment in self.segments:
            self.record.skipped(segment, entered)

    def _come(self, block: Block, run: Callable[[Streams, Compute], Any], streams: Streams, compute: Compute) -> Any:
        self._came.append(block)
        return run(streams, compute)

    def _compute(self, block: Block, streams: Streams, compute: Compute) -> Any:
        self.record.computed(block, streams)
        return compute()

    def _run(self, segment: Segment, block: Block, streams: Streams, compute: Compute) -> Any:
        """Compute a block, or pass its input on and let the last block of the segment return the estimate."""
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
            self._decisions.clear()  # left over from an interrupted call
        if segment.index not in self._decisions:
            self._decide(tick, [segment] if self.config.sync == "block" else self.segments, streams)
        call = SegmentCall(tick, self._state(tick, segment), self._decisions.pop(segment.index), streams)
        if call.decision.skip and not call.state.holds(streams):
            call = self.record.corrected(call, segment)
        return call if call.decision.skip or not self.partial else self._enter_partial(segment, call, self.partial)

    def _decide(self, tick: Tick, segments: Sequence[Segment], streams: Streams) -> None:
        pairs: list[SegmentWithState] = [(segment, self._state(tick, segment)) for segment in segments]
        ruling = self.judge.decide(tick, pairs, streams)
        self.record.decided(tick, pairs, ruling)
        self._decisions |= {
            segment.index: decision for segment, decision in zip(segments, ruling.decisions, strict=True)
        }

    def _enter_partial(self, segment: Segment, call: SegmentCall, partial: PartialSteps) -> SegmentCall:
        """Choose the tokens of a partial step; if most tokens move, it becomes a full step."""
        if call.decision.partial:
            estimate = self._estimate(segment, call)
            call = self.record.chosen(call, partial.choose(call.tick, call.state, call.entered, estimate))
        partial.enter(call.tick, call.part)
        return call

    def _compute_part(
        self, segment: Segment, block: Block, call: SegmentCall, part: PartialCall, compute: Compute
    ) -> Any:
        """Pass the kept tokens to the first block; put their outputs back among the other tokens after the last."""
        self.record.computed_part(block, call, part)
        first = block is segment.blocks[0]
        output = compute(part.kept.take(call.entered.hidden_states) if first else None)
        if block is not segment.blocks[-1]:
            return output
        return block.spec.pack(part.finish(block.spec.unpack(output)))

    def _leave(self, segment: Segment, call: SegmentCall, output: Streams) -> None:
        if self.partial:
            self.partial.leave(call.tick, None if call.part else output)
        if call.part:
            return
        if self.observer and self.observer.sees_segments and call.state.holds(call.entered):
            self.observer.on_segment(segment, call, output, self._estimate(segment, call))
        kept_as = self.config.reference_dtype
        call.state.keep(self.stand_ins.of(segment), call.entered, output, call.tick.step, kept_as)

    def _skip(self, segment: Segment, block: Block, streams: Streams, call: SegmentCall, compute: Compute) -> Any:
        observer = self.observer if self.observer and self.observer.runs_skipped else None
        output = compute() if observer else block.spec.pack(streams)
        if block is not segment.blocks[-1]:
            return output
        self.record.skipped(segment, call.entered)
        estimate = self._estimate(segment, call)
        if observer:
            observer.on_segment(segment, call, block.spec.unpack(output), estimate)
        return block.spec.pack(estimate)

    def _estimate(self, segment: Segment, call: SegmentCall) -> Streams:
        return call.state.stand_in(self.stand_ins.of(segment), call.entered, call.tick.step)

    def _state(self, tick: Tick, segment: Segment) -> SegmentState:
        """Return the state of this branch, patch and segment; a patch starts from its rows of the full sequence."""
        key = (tick.branch, tick.patch, segment.index)
        if key not in self.states:
            full = self.states.get((tick.branch, None, segment.index))
            self.states[key] = full.rows(*tick.rows) if full and tick.rows else self.new_state()
        return self.states[key]
