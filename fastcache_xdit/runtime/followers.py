"""Judges that take another's word: branches and patches of one step, and later PipeFusion stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from fastcache_xdit.clock import Tick
from fastcache_xdit.decision.evidence import Decision
from fastcache_xdit.errors import RankDivergenceError
from fastcache_xdit.models.spec import Streams
from fastcache_xdit.runtime.call import Stateful
from fastcache_xdit.runtime.judge import Judge, Ruling
from fastcache_xdit.segments.state import SegmentState

HEADER_LENGTH = 6  # numbers in a message from one stage to the next


class FollowingJudge:
    """Calls of a step that must not differ take the first one's decision, without a message.

    Args:
        inner: decides for the first one.
        branches: guidance branches in calls of their own follow each other (`cfg_agreement`).
        patches: so do PipeFusion patches (`ModelSpec.patches_follow_first`).
    """

    def __init__(self, inner: Judge, branches: bool, patches: bool) -> None:
        self.inner = inner
        self.branches = branches
        self.patches = patches
        self._first: dict[tuple[str, str | None, int | None], tuple[Tick, list[Decision]]] = {}

    def begin(self, sigmas: Sequence[float]) -> None:
        """Begin a request."""
        self.inner.begin(sigmas)

    def decide(self, tick: Tick, pairs: list[Stateful], streams: Streams) -> Ruling:
        """Decide, or repeat what was decided for the first call of the step."""
        key = pairs[0][0].name, None if self.branches else tick.branch, None if self.patches else tick.patch
        first, decisions = self._first.get(key, (tick, []))
        if first == tick or first.step != tick.step:
            ruling = self.inner.decide(tick, pairs, streams)
            self._first[key] = tick, ruling.decisions
            return ruling
        return Ruling([_as_possible(state, led) for (_, state), led in zip(pairs, decisions, strict=True)])


class Relay(Protocol):
    """Carries decisions from one PipeFusion stage to the next, on the host, ahead of the activations."""

    is_first: bool

    def send(self, header: list[float]) -> None:
        """Pass a header of fixed length on; the last stage has nobody to pass it to."""

    def receive(self) -> list[float]:
        """Wait for the previous stage's next header."""


class LeaderJudge:
    """`pp_decision: leader`: the first stage decides for each step and patch, the others take its word.

    A stage without references computes all the same: its peers exchange activations of fixed shape either way.
    """

    def __init__(self, inner: Judge, relay: Relay) -> None:
        self.inner = inner
        self.relay = relay

    def begin(self, sigmas: Sequence[float]) -> None:
        """Begin a request."""
        self.inner.begin(sigmas)

    def decide(self, tick: Tick, pairs: list[Stateful], streams: Streams) -> Ruling:
        """Decide on the first stage, follow on the others, and pass the decision on.

        Raises:
            RankDivergenceError: a stage runs another step or patch than its leader.
        """
        if self.relay.is_first:
            ruling = self.inner.decide(tick, pairs, streams)
            self._pass_on(tick, ruling.decisions[0])
            return ruling
        led = self._receive(tick)
        self._pass_on(tick, led)
        return Ruling([_as_possible(state, led) for _, state in pairs])

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


def _as_possible(state: SegmentState, decision: Decision) -> Decision:
    """Somebody else's decision, as far as this state can follow it."""
    return decision if state.order else decision._replace(skip=False, partial=False, reason="no reference")
