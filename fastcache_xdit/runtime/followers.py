"""Judges that repeat the decision of another branch, patch or PipeFusion stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from fastcache_xdit.clock import Tick
from fastcache_xdit.decision.evidence import Decision
from fastcache_xdit.errors import RankDivergenceError
from fastcache_xdit.models.spec import Streams
from fastcache_xdit.runtime.call import SegmentWithState
from fastcache_xdit.runtime.judge import Judge, Ruling
from fastcache_xdit.segments.state import SegmentState

HEADER_LENGTH = 6  # numbers in a message from one stage to the next


class FollowingJudge:
    """Repeats the decision of the first call of a step for its other calls, without a message.

    Args:
        inner: decides for the first call.
        branches: whether CFG branches that are called one after the other share a decision (`cfg_agreement`).
        patches: whether PipeFusion patches share a decision (`ModelSpec.patches_follow_first`).
    """

    def __init__(self, inner: Judge, branches: bool, patches: bool) -> None:
        self.inner = inner
        self.branches = branches
        self.patches = patches
        self._first: dict[tuple[str, str | None, int | None], tuple[Tick, list[Decision]]] = {}

    def begin(self, sigmas: Sequence[float]) -> None:
        """Begin a request."""
        self.inner.begin(sigmas)

    def decide(self, tick: Tick, pairs: list[SegmentWithState], streams: Streams) -> Ruling:
        """Decide for the first call of a step, and repeat that decision for the others."""
        key = pairs[0][0].name, None if self.branches else tick.branch, None if self.patches else tick.patch
        first, decisions = self._first.get(key, (tick, []))
        if first == tick or first.step != tick.step:
            ruling = self.inner.decide(tick, pairs, streams)
            self._first[key] = tick, ruling.decisions
            return ruling
        return Ruling([_follow(state, decision) for (_, state), decision in zip(pairs, decisions, strict=True)])


class Relay(Protocol):
    """Sends decisions from one PipeFusion stage to the next, between hosts and ahead of the activations.

    Attributes:
        is_first: whether this is the first stage.
    """

    is_first: bool

    def send(self, header: list[float]) -> None:
        """Send a header of `HEADER_LENGTH` numbers to the next stage; the last stage sends nothing."""

    def receive(self) -> list[float]:
        """Wait for the next header of the previous stage and return it."""


class LeaderJudge:
    """Lets the first stage decide for each step and patch, and the others follow (`pp_decision: leader`).

    A stage without references computes even if the leader skips; the activations that stages exchange have the same
    shape either way.
    """

    def __init__(self, inner: Judge, relay: Relay) -> None:
        self.inner = inner
        self.relay = relay

    def begin(self, sigmas: Sequence[float]) -> None:
        """Begin a request."""
        self.inner.begin(sigmas)

    def decide(self, tick: Tick, pairs: list[SegmentWithState], streams: Streams) -> Ruling:
        """Decide on the first stage, follow on the others, and pass the decision on.

        Raises:
            RankDivergenceError: this stage is at another step or patch than the leader.
        """
        if self.relay.is_first:
            ruling = self.inner.decide(tick, pairs, streams)
            self._pass_on(tick, ruling.decisions[0])
            return ruling
        decision = self._receive(tick)
        self._pass_on(tick, decision)
        return Ruling([_follow(state, decision) for _, state in pairs])

    def _pass_on(self, tick: Tick, decision: Decision) -> None:
        self.relay.send([*_position(tick), decision.skip, decision.change, decision.predicted_error, decision.partial])

    def _receive(self, tick: Tick) -> Decision:
        *position, skip, change, predicted_error, partial = self.relay.receive()
        if position != _position(tick):
            raise RankDivergenceError(
                f"PipeFusion stages diverged: the leader is at step {position[0]:.0f}, patch {position[1]:.0f}; "
                f"this stage is at step {tick.step}, patch {_position(tick)[1]:.0f} (-1: no patches)"
            )
        return Decision(bool(skip), "leader", change, predicted_error, bool(partial))


def _position(tick: Tick) -> list[float]:
    return [float(tick.step), -1.0 if tick.patch is None else float(tick.patch)]


def _follow(state: SegmentState, decision: Decision) -> Decision:
    """Return the decision of another call or stage; a segment without references is computed instead."""
    return decision if state.order else decision._replace(skip=False, partial=False, reason="no reference")
