"""What a decision is made from, what it says, and what later ones remember of it; plain numbers, no torch."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field, replace
from typing import NamedTuple


class Decision(NamedTuple):
    """What to do with one segment at one tick, and why: skip it, compute a part of its tokens, or compute it whole."""

    skip: bool
    reason: str
    change: float = math.inf
    predicted_error: float = math.inf
    partial: bool = False


@dataclass
class Track:
    """What the decisions of one segment remember from step to step, equal on all agreeing ranks.

    Attributes:
        observed: pairs (relative change, relative error that the stand-in would have made) of computed steps: the
            online estimate of how much error a change stands for.
        skipped: steps skipped in a row so far.
        accumulated: decayed sum of predicted errors since the last computed step.
        last_change: relative change that the last decision saw.
    """

    observed: deque[tuple[float, float]]
    skipped: int = 0
    accumulated: float = 0.0
    last_change: float = math.inf

    @classmethod
    def empty(cls, window: int) -> Track:
        """Return a track that has seen nothing and keeps `window` observations."""
        return cls(deque(maxlen=window))

    def copy(self) -> Track:
        """Return an independent copy, for the hand-over from the full sequence to its patches."""
        return replace(self, observed=deque(self.observed, maxlen=self.observed.maxlen))

    def observe(self, error: float) -> None:
        """Add the relative error of the last computed step, beside the change that was seen then."""
        if 0 < self.last_change < math.inf and math.isfinite(error):
            self.observed.append((self.last_change, error))

    def note(self, decision: Decision, decay: float) -> None:
        """Remember a decision: a computed step clears the run of skips and the error bound e <- decay e + error.

        A partial step counts as a skipped one: most of its tokens are.
        """
        spared = decision.skip or decision.partial
        self.last_change = decision.change
        self.skipped = self.skipped + 1 if spared else 0
        self.accumulated = decay * self.accumulated + decision.predicted_error if spared else 0.0

    def correct(self, decision: Decision) -> None:
        """Note again a step that was noted as partial, where `decision` says that it was computed whole after all."""
        if not decision.partial:
            self.note(decision, 0.0)


@dataclass(frozen=True)
class Evidence:
    """What is known when a segment is entered.

    Attributes:
        change: norm of the change of the hidden states since the reference over the norm of the reference.
        order: references that the stand-in has.
        track: what earlier decisions left.
        motion: relative variance of the tokens' saliencies.
        values: numbers that the change was measured on, N D.
        scheduled: the schedule wants this step computed.
        scheduled_part: it wants a part of the tokens computed.
    """

    change: float
    order: int
    track: Track = field(repr=False)
    motion: float = 0.0
    values: int = 1
    scheduled: bool = False
    scheduled_part: bool = False
