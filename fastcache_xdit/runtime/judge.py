"""Measure, agree, decide: one decision for each segment at each tick, the same on all ranks that must agree."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch

from fastcache_xdit.clock import Tick
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.counters import Counters
from fastcache_xdit.decision.policy import Decision, Evidence, decide
from fastcache_xdit.decision.schedule import marks_for
from fastcache_xdit.decision.significance import Calibrated, Online, Paper, SignificanceTest, Spread, Unasked
from fastcache_xdit.errors import RankDivergenceError
from fastcache_xdit.models.spec import Streams
from fastcache_xdit.parallel.consensus import Consensus
from fastcache_xdit.parallel.ledger import Entry, Ledger
from fastcache_xdit.segments.segment import Segment
from fastcache_xdit.segments.state import CHANGE_SUMS, SegmentState

Stateful = tuple[Segment, SegmentState]


class Change(NamedTuple):
    """How far the entry states moved since the reference: relative norm, relative variance over tokens, and N D."""

    relative: float
    motion: float = 0.0
    values: int = 1


class Judge(Protocol):
    """Decides for segments about to be entered; every rank calls it at the same places."""

    def decide(self, tick: Tick, pairs: Sequence[Stateful], streams: Streams) -> list[Decision]:
        """One decision per (segment, state); `streams` enter the first of them."""


class Rules:
    """The decision rules of one request: schedule, and one test for each segment.

    Nothing of them depends on the states, so every rank has the same without a message.
    """

    def __init__(self, config: FastCacheConfig, spreads: Mapping[int, Spread] | None = None) -> None:
        self.config = config
        self._calibrated = dict(spreads or {})
        self._tests: dict[int, SignificanceTest] = {}
        self._marks = ""

    def begin(self, sigmas: Sequence[float]) -> None:
        """A request begins whose steps have these noise levels (none where the number of steps is unknown)."""
        self._marks = marks_for(self.config.schedule, len(sigmas)) if self.config.schedule and sigmas else ""
        if self.config.test == "calibrated":
            alpha, tolerance = self.config.alpha, self.config.tolerance
            spreads = {index: spread.at(sigmas) for index, spread in self._calibrated.items()}
            self._tests = {index: Calibrated(alpha, tolerance, spread) for index, spread in spreads.items()}

    def judge(self, segment: Segment, state: SegmentState, tick: Tick, change: Change) -> Decision:
        """The decision for one segment."""
        mark = self._marks[tick.step : tick.step + 1]
        evidence = Evidence(change.relative, state.order, state.track, change.motion, mark == "1", mark == "p")
        return decide(evidence, tick, self.config, self._test(segment, change))

    def _test(self, segment: Segment, change: Change) -> SignificanceTest:
        if self.config.test == "calibrated":
            return self._tests[segment.index]
        if self.config.test == "paper":
            return Paper(self.config.alpha, change.values)
        return Online(self.config.threshold) if self.config.test == "online" else Unasked()


class ScheduledJudge:
    """`test: none`: every rank reads the same schedule, and nothing is measured or exchanged."""

    def __init__(self, config: FastCacheConfig, rules: Rules, ledger: Ledger) -> None:
        self.config = config
        self.rules = rules
        self.ledger = ledger

    def decide(self, tick: Tick, pairs: Sequence[Stateful], streams: Streams) -> list[Decision]:
        """See `Judge`."""
        known = [Change(0.0 if state.holds(streams) else math.inf) for _, state in pairs]
        decisions = [self.rules.judge(*pair, tick, change) for pair, change in zip(pairs, known, strict=True)]
        _note(tick, pairs, decisions, self.config, self.ledger)
        return decisions


class AgreeingJudge:
    """Decides from sums over all ranks that must agree: one collective, one host read.

    `share` is the part of the model's blocks after the lead blocks that this PipeFusion stage holds. It sees the errors
    of its own part alone, while `threshold` is meant for the whole; errors of parts add up like independent ones.
    """

    def __init__(
        self,
        config: FastCacheConfig,
        rules: Rules,
        consensus: Consensus,
        ledger: Ledger,
        counters: Counters,
        share: float = 1.0,
    ) -> None:
        self.config = config
        self.rules = rules
        self.consensus = consensus
        self.ledger = ledger
        self.counters = counters
        self.share = share

    def decide(self, tick: Tick, pairs: Sequence[Stateful], streams: Streams) -> list[Decision]:
        """See `Judge`.

        Nothing returns before the collective: a rank without history joins it with an infinite change. The errors of
        earlier computed steps travel in the same message.
        """
        change, errors = self._agreed(tick, pairs, streams)
        decisions = []
        for (segment, state), error in zip(pairs, errors, strict=True):
            if not math.isnan(error):
                state.track.observe(error / math.sqrt(self.share))
            self.counters.nonfinite += math.isnan(change.relative)
            decisions.append(self.rules.judge(segment, state, tick, change))
        _note(tick, pairs, decisions, self.config, self.ledger)
        if self.config.verify_every and tick.step % self.config.verify_every == 0:
            self.consensus.confirm(self.ledger.stamp, _place(tick, pairs))
        return decisions

    def _agreed(self, tick: Tick, pairs: Sequence[Stateful], streams: Streams) -> tuple[Change, list[float]]:
        """The change on entry, and for each pair the relative error of its last computed step (or NaN).

        The largest sample of the batch counts.
        """
        sums = [pairs[0][1].change(streams), *(_pending(state, streams) for _, state in pairs)]
        local = torch.cat(sums, dim=1)
        memory = [(state.order, state.track) for _, state in pairs]  # if it differed, so would decisions on equal sums
        total = self.consensus.agree(local, self.ledger.stamp_with(memory), _place(tick, pairs))
        change, reference, saliency, tokens = total[:, :CHANGE_SUMS].unbind(1)
        errors = total[:, CHANGE_SUMS::2] / total[:, CHANGE_SUMS + 1 :: 2]
        motion = (tokens * saliency / change.square() - 1).nan_to_num(0.0, 0.0).amax()
        values = int(tokens.max()) * streams.hidden_states.shape[-1]
        found = Change((change / reference).amax().sqrt().item(), motion.item(), values)
        return found, errors.amax(dim=0).sqrt().tolist()


class FollowingJudge:
    """Calls of a step that must not differ take the first one's decision, without a message.

    Args:
        branches: guidance branches in calls of their own follow each other (`cfg_agreement`).
        patches: so do PipeFusion patches (`ModelSpec.patches_follow_first`).
    """

    def __init__(self, inner: Judge, config: FastCacheConfig, ledger: Ledger, branches: bool, patches: bool) -> None:
        self.inner = inner
        self.config = config
        self.ledger = ledger
        self.branches = branches
        self.patches = patches
        self._first: dict[tuple[str, str | None, int | None], tuple[Tick, list[Decision]]] = {}

    def decide(self, tick: Tick, pairs: Sequence[Stateful], streams: Streams) -> list[Decision]:
        """See `Judge`."""
        key = pairs[0][0].name, None if self.branches else tick.branch, None if self.patches else tick.patch
        leader, led = self._first.get(key, (tick, []))
        if leader == tick or leader.step != tick.step:
            self._first[key] = tick, self.inner.decide(tick, pairs, streams)
            return self._first[key][1]
        decisions = [_possible(state, first) for (_, state), first in zip(pairs, led, strict=True)]
        _note(tick, pairs, decisions, self.config, self.ledger)
        return decisions


class Relay(Protocol):
    """Carries decisions from one PipeFusion stage to the next, on the host, ahead of the activations."""

    is_first: bool

    def send(self, header: list[float]) -> None:
        """Pass a header of fixed length on; the last stage has nobody to pass it to."""

    def receive(self) -> list[float]:
        """The previous stage's next header."""


class LeaderJudge:
    """`pp_decision: leader`: the first stage decides for each step and patch, the others take its word.

    A stage without references computes all the same: its peers exchange activations of fixed shape either way.
    """

    def __init__(self, inner: Judge, relay: Relay, config: FastCacheConfig, ledger: Ledger, counters: Counters) -> None:
        self.inner = inner
        self.relay = relay
        self.config = config
        self.ledger = ledger
        self.counters = counters

    def decide(self, tick: Tick, pairs: Sequence[Stateful], streams: Streams) -> list[Decision]:
        """See `Judge`. Raises RankDivergenceError where a stage runs another step or patch than its leader."""
        if self.relay.is_first:
            decisions = self.inner.decide(tick, pairs, streams)
            self._pass_on(tick, decisions[0])
            return decisions
        led = self._follow(tick)
        self._pass_on(tick, led)
        decisions = [_possible(state, led) for _, state in pairs]
        _note(tick, pairs, decisions, self.config, self.ledger)
        return decisions

    def _pass_on(self, tick: Tick, decision: Decision) -> None:
        self.relay.send([*_position(tick), decision.skip, decision.change, decision.predicted_error, decision.partial])
        self.counters.headers += 1

    def _follow(self, tick: Tick) -> Decision:
        *position, skip, change, predicted_error, partial = self.relay.receive()
        if position != _position(tick):
            raise RankDivergenceError(
                f"PipeFusion stages diverged: the leader is at step {position[0]:.0f}, patch {position[1]:.0f}; "
                f"this stage is at step {tick.step}, patch {_position(tick)[1]:.0f} (-1: no patches)"
            )
        return Decision(bool(skip), "leader", change, predicted_error, bool(partial))


HEADER_LENGTH = 6


def _position(tick: Tick) -> list[float]:
    return [float(tick.step), -1.0 if tick.patch is None else float(tick.patch)]


def _possible(state: SegmentState, decision: Decision) -> Decision:
    """Somebody else's decision, as far as this state can follow it."""
    return decision if state.order else decision._replace(skip=False, partial=False, reason="no reference")


def _note(
    tick: Tick, pairs: Sequence[Stateful], decisions: Sequence[Decision], config: FastCacheConfig, ledger: Ledger
) -> None:
    for (segment, state), decision in zip(pairs, decisions, strict=True):
        state.track.note(decision, config.error_decay)
        ledger.record(Entry(tick.step, tick.branch, tick.patch, segment.name, *decision))


def _pending(state: SegmentState, streams: Streams) -> torch.Tensor:
    """The error sums to exchange, once; 0 / 0 where there are none."""
    error, state.error = state.error, None
    if error is not None:
        return error
    return torch.zeros(streams.hidden_states.shape[0], 2, dtype=torch.float64, device=streams.hidden_states.device)


def _place(tick: Tick, pairs: Sequence[Stateful]) -> str:
    patch = "" if tick.patch is None else f", patch {tick.patch}"
    return f"step {tick.step}{patch}, block {pairs[0][0].name}"
