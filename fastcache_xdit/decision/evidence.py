"""Decisions, the evidence that they are made from, and their memory; plain numbers, no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple


class Decision(NamedTuple):
    """What to do with one segment at one tick: skip it, compute some of its tokens, or compute it fully.

    Attributes:
        skip: replace the segment by its stand-in.
        reason: why, as in the ledger.
        change: relative change of the hidden states that the decision saw.
        predicted_error: relative error that a skip is predicted to cause.
        partial: compute some of the tokens.
    """

    skip: bool
    reason: str
    change: float = math.inf
    predicted_error: float = math.inf
    partial: bool = False


@dataclass
class Track:
    """The memory of one segment's decisions from step to step; equal on all agreeing ranks.

    Attributes:
        skipped: number of steps skipped in a row so far.
        accumulated: decayed sum of predicted errors since the last computed step.
    """

    skipped: int = 0
    accumulated: float = 0.0

    def note(self, decision: Decision, decay: float) -> None:
        """Remember a decision: a skip adds to the run and to the error bound, e <- decay e + error; others reset both.

        A partial step counts as a skip, because most of its tokens are skipped.
        """
        skips = decision.skip or decision.partial
        self.skipped = self.skipped + 1 if skips else 0
        self.accumulated = decay * self.accumulated + decision.predicted_error if skips else 0.0

    def correct(self, decision: Decision) -> None:
        """Replace the memory of a partial step that turned out to be computed fully, as `decision` says."""
        if not decision.partial:
            self.note(decision, 0.0)


@dataclass(frozen=True)
class Evidence:
    """What is known when a segment is entered.

    Attributes:
        change: norm of the change of the hidden states since the reference, over the norm of the reference.
        order: number of references that the stand-in has.
        track: memory of earlier decisions.
        motion: relative variance of the tokens' saliencies.
        values: number of values that the change was measured on, N D.
        scheduled: whether the schedule marks this step as computed.
        scheduled_part: whether the schedule marks this step as partial.
    """

    change: float
    order: int
    track: Track = field(repr=False)
    motion: float = 0.0
    values: int = 1
    scheduled: bool = False
    scheduled_part: bool = False
