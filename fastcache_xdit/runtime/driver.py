"""Runs a transformer with FastCache: one driver per model, five verbs per segment in the order of the paper."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from fastcache_xdit.approx.linear import StandIn
from fastcache_xdit.clock import Clock, Tick
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.counters import Counters
from fastcache_xdit.decision.policy import Decision, Track
from fastcache_xdit.models.spec import Streams
from fastcache_xdit.partial.steps import Part, PartialSteps
from fastcache_xdit.runtime.judge import Judge
from fastcache_xdit.segments.segment import Block, Segment
from fastcache_xdit.segments.state import SegmentState


class Pass(NamedTuple):
    """One segment during one call of the transformer."""

    tick: Tick
    state: SegmentState
    decision: Decision
    entered: Streams
    part: Part | None = None


# Calls a block, with its own image tokens or with others instead.
Compute = Callable[..., Any]

# Called with what a segment really gave and what its stand-in gives; while there is one, skipped blocks run as well.
Witness = Callable[[Segment, Pass, Streams, Streams], None]


class Entering(Exception):
    """Carries out what was about to enter the first block."""

    def __init__(self, streams: Streams) -> None:
        super().__init__()
        self.streams = streams


class Driver:
    """Stands in front of every block of one transformer."""

    def __init__(
        self,
        config: FastCacheConfig,
        segments: Sequence[Segment],
        stand_ins: Sequence[StandIn],
        judge: Judge,
        clock: Clock,
        counters: Counters,
        on_request: Sequence[Callable[[list[float]], None]] = (),
        partial: PartialSteps | None = None,
    ) -> None:
        self.config = config
        self.segments = segments
        self.stand_ins = stand_ins
        self.judge = judge
        self.clock = clock
        self.counters = counters
        self.on_request = on_request
        self.partial = partial
        self.states: dict[tuple[str, int | None, int], SegmentState] = {}
        self.witness: Witness | None = None
        self.looking = False
        self._plan: dict[int, Decision] = {}
        self._passes: dict[int, Pass] = {}

    def begin(self, sigmas: list[float]) -> None:
        """A request begins; `sigmas` are the noise levels of its steps, empty in a user's own loop."""
        self.reset()
        for listener in self.on_request:
            listener(sigmas)

    def reset(self) -> None:
        """Forget every reference: the next step is computed."""
        self.states.clear()
        self._plan.clear()
        self._passes.clear()
        if self.partial:
            self.partial.clear()

    def bytes_held(self) -> int:
        """Bytes of the cached tensors."""
        beside = self.partial.bytes_held() if self.partial else 0
        return sum(state.bytes_held() for state in self.states.values()) + beside

    def counted(self, block: Block) -> Callable[..., Any]:
        """What takes the place of a lead block's forward: always computed, but counted."""
        return self._wrapped(block, lambda streams, compute: self._compute(block, streams, compute))

    def decided(self, segment: Segment, block: Block) -> Callable[..., Any]:
        """What takes the place of the forward of a block of `segment`."""
        return self._wrapped(block, lambda streams, compute: self._run(segment, block, streams, compute))

    def entering(self, call: Callable[[], Any]) -> Streams:
        """What enters the first block of a call of the transformer, which ends there."""
        self.looking = True
        try:
            call()
        except Entering as found:
            return found.streams
        finally:
            self.looking = False
        raise AssertionError("no block was called")

    def rebase(self, entered: Streams, patch: int | None) -> None:
        """Take what a computed step added from other states on: from those that entered an earlier pipeline stage."""
        self.states[self.clock.branch, patch, 0].rebase(entered)

    def pass_over(self, tick: Tick) -> None:
        """A skipped step that this stage has no part in: note it, and keep its place in the run of skips."""
        streams = self._passes[0].entered
        pairs = [(each, self._state(tick, each)) for each in self.segments]
        self.judge.decide(tick, pairs, streams)
        for segment in self.segments:
            for block in segment.blocks:
                self.counters.note(block.name, _tokens(streams), computed=False)

    def _wrapped(self, block: Block, run: Callable[[Streams, Compute], Any]) -> Callable[..., Any]:
        original = block.module.forward
        signature = inspect.signature(getattr(block.module, "_orig_mod", block.module).forward)

        @functools.wraps(original)
        @torch.compiler.disable(recursive=False)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if self.clock.now is None and not self.looking:
                return original(*args, **kwargs)
            call = signature.bind(*args, **kwargs)
            if self.looking:
                raise Entering(block.spec.read(call.arguments))

            def compute(hidden_states: torch.Tensor | None = None) -> Any:
                if hidden_states is None:
                    return original(*args, **kwargs)
                changed = block.spec.with_hidden(call, hidden_states)
                return original(*changed.args, **changed.kwargs)

            return run(block.spec.read(call.arguments), compute)

        return forward

    def _run(self, segment: Segment, block: Block, streams: Streams, compute: Compute) -> Any:
        """Compute a block, or hand its input on and let the last block of the segment give the stand-in."""
        if block is segment.blocks[0]:
            self._passes[segment.index] = self._enter(segment, streams)
        step = self._passes[segment.index]
        if step.decision.skip:
            return self._skip(segment, block, streams, step, compute)
        if step.part:
            output = self._compute_part(segment, block, step, step.part, compute)
        else:
            output = self._compute(block, streams, compute)
        if block is segment.blocks[-1]:
            self._leave(segment, step, block.spec.unpack(output))
        return output

    def _compute(self, block: Block, streams: Streams, compute: Compute) -> Any:
        self.counters.note(block.name, _tokens(streams), computed=True)
        return compute()

    def _compute_part(self, segment: Segment, block: Block, step: Pass, part: Part, compute: Compute) -> Any:
        """The first block takes the kept tokens, the last one puts what became of them among the others."""
        whole = step.entered.hidden_states
        self.counters.note_partial(block.name, len(whole) * part.kept.count, _tokens(step.entered))
        output = compute(part.kept.take(whole) if block is segment.blocks[0] else None)
        if block is not segment.blocks[-1]:
            return output
        return block.spec.pack(part.finish(block.spec.unpack(output)))

    def _leave(self, segment: Segment, step: Pass, left: Streams) -> None:
        if self.partial:
            self.partial.leave(step.tick, None if step.part else left)
        if step.part is None:
            self._learn(segment, step, left)

    def _learn(self, segment: Segment, step: Pass, left: Streams) -> None:
        stand_in = self.stand_ins[segment.index]
        if self.witness and step.state.holds(step.entered):
            guess = step.state.stand_in(stand_in, step.entered, step.tick.step)
            self.witness(segment, step, left, guess)
        learn = step.state.learn if self.config.test == "online" else step.state.keep
        learn(stand_in, step.entered, left, step.tick.step)

    def _skip(self, segment: Segment, block: Block, streams: Streams, step: Pass, compute: Compute) -> Any:
        self.counters.note(block.name, _tokens(streams), computed=False)
        output = compute() if self.witness else block.spec.pack(streams)
        if block is not segment.blocks[-1]:
            return output
        guess = step.state.stand_in(self.stand_ins[segment.index], step.entered, step.tick.step)
        if self.witness:
            self.witness(segment, step, block.spec.unpack(output), guess)
        return block.spec.pack(guess)

    def _enter(self, segment: Segment, streams: Streams) -> Pass:
        tick = self.clock.now
        assert tick is not None
        if segment.index == 0:
            self._plan.clear()  # what an interrupted call left behind
        if segment.index not in self._plan:
            group = self.segments if self.config.sync == "step" else [segment]
            decisions = self.judge.decide(tick, [(each, self._state(tick, each)) for each in group], streams)
            self._plan.update({each.index: decision for each, decision in zip(group, decisions, strict=True)})
        step = Pass(tick, self._state(tick, segment), self._plan.pop(segment.index), streams)
        return step if step.decision.skip or not self.partial else self._begin_blocks(segment, step, self.partial)

    def _begin_blocks(self, segment: Segment, step: Pass, partial: PartialSteps) -> Pass:
        """Choose the tokens of a partial step; where it turns out to be a whole one, remember it as such."""
        if step.decision.partial:
            guess = step.state.stand_in(self.stand_ins[segment.index], step.entered, step.tick.step)
            part = partial.choose(step.tick, step.state, step.entered, guess)
            step = step._replace(part=part, decision=step.decision._replace(partial=part is not None))
            step.state.track.correct(step.decision)
        partial.enter(step.tick, step.part)
        return step

    def _state(self, tick: Tick, segment: Segment) -> SegmentState:
        """The state of this branch, patch and segment; a patch starts from its rows of the full sequence."""
        key = (tick.branch, tick.patch, segment.index)
        if key not in self.states:
            whole = self.states.get((tick.branch, None, segment.index))
            fresh = SegmentState(Track.empty(self.config.window))
            self.states[key] = whole.rows(*tick.rows) if whole and tick.rows else fresh
        return self.states[key]


def _tokens(streams: Streams) -> int:
    return streams.hidden_states.shape[:2].numel()
