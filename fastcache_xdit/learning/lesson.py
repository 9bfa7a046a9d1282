"""Learns from recorded requests: plans masks, fits weights, and verifies both on the requests' own final latents."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.approx.moments import Halves, Moments
from fastcache_xdit.approx.output import SEGMENT, STREAM
from fastcache_xdit.approx.output_plan import planned
from fastcache_xdit.decision.schedule import uniform_mask
from fastcache_xdit.host.effects import Effects
from fastcache_xdit.learning.likeness import latents_decibels
from fastcache_xdit.learning.ranks import Ranks
from fastcache_xdit.learning.refit import refitted, returning
from fastcache_xdit.learning.trajectory import Trajectory, moments_of

ROUNDS = 2  # of refits of the best mask, each on the trajectories of the one before
HELD_OUT_EVERY = 3
# Requests from which on the latents are weighed too: it gains 0.1 to 0.9 dB with 16, and loses 1.4 with 4.
ENOUGH_FOR_LATENTS = 8

# Makes a recorded request again under a mask, with what is known; returns this rank's trajectory.
Replay = Callable[[int, str, Calibration], Trajectory]


@dataclass(frozen=True)
class Attempt:
    """A mask with its weights, and how near the final latents came to those of the requests computed in full.

    Attributes:
        mask: the mask.
        source: the attempt by whose trajectories the weights were refitted; None for first weights.
        decibels: -20 log10(relative error of the final latents) of each sample of all requests.
        moments: of each request, of what its skipped steps should have had, each sample divided by its relative error:
            one that came out as another picture would else outweigh all that are nearly right.
    """

    mask: str
    source: Attempt | None
    decibels: tuple[float, ...]
    moments: Sequence[Moments]

    def mean(self) -> float:
        """Return the mean of `decibels`."""
        return sum(self.decibels) / len(self.decibels)


@dataclass
class Lesson:
    """What some requests at the same noise levels teach.

    Args:
        sigmas: the noise levels.
        effects: of the scheduler at these.
        references: this rank's trajectories of the requests, computed in full.
        replay: makes one of them again.
        pooled: what was known before.
        ranks: the ranks that serve these requests.
    """

    sigmas: tuple[float, ...]
    effects: Effects
    references: Sequence[Trajectory]
    replay: Replay
    pooled: Calibration
    ranks: Ranks

    @cached_property
    def moments(self) -> list[Moments]:
        """The moments of each request, computed in full."""
        return [self._total(trajectory, trajectory.outputs()) for trajectory in self.references]

    @cached_property
    def calibration(self) -> Calibration:
        """What the requests themselves say, as it would be loaded from a file."""
        return self._calibration()

    def best(self, computed: int) -> Attempt:
        """Return the best of a few masks with so many computed steps, refitted where that is better."""
        best = functools.reduce(better, map(self._twice, self._candidates(computed)))
        latest = best
        for _ in range(ROUNDS):
            latest = self._try(latest.mask, latest)
            best = max(best, latest, key=Attempt.mean)
        return best

    def known(self, source: Attempt | None, without: int | None = None) -> Calibration:
        """Return what is known for the weights of an attempt, from all requests or from all but one."""
        calibration = self.calibration if without is None else self._calibration(without)
        if source is None:
            return calibration
        refits = refitted(_halves(source.moments, without), source.mask, self.effects.final)
        return replace(calibration, refits=refits)

    def _calibration(self, without: int | None = None) -> Calibration:
        return Calibration({}, {}, self.sigmas, {SEGMENT: {STREAM: _halves(self.moments, without)}}).as_saved()

    def _twice(self, mask: str) -> Attempt:
        """Return the better of a mask's attempts with the first weights and with refitted ones."""
        first = self._try(mask, None)
        return max(first, self._try(mask, first), key=Attempt.mean)

    def _candidates(self, computed: int) -> Iterator[str]:
        """Yield, without duplicates, the planned mask, the one planned for other models, and an even one."""
        plans = [planned(known, self.sigmas, self.effects.final).masks for known in (self.calibration, self.pooled)]
        masks = [plan.mask(computed) for plan in plans]
        yield from dict.fromkeys([*masks, uniform_mask(len(self.sigmas), computed)])

    def _try(self, mask: str, source: Attempt | None) -> Attempt:
        known, found, moments = self.known(source), [], []
        for index, reference in enumerate(self.references):
            trajectory = self.replay(index, mask, known)
            decibels = latents_decibels(trajectory, reference, self.ranks)
            found += decibels.tolist()
            moments.append(self._total(trajectory, self._returning(trajectory, reference, mask), 10 ** (decibels / 20)))
        return Attempt(mask, source, tuple(found), moments)

    def _returning(self, trajectory: Trajectory, reference: Trajectory, mask: str) -> list[torch.Tensor]:
        return returning(trajectory, reference, mask, self.effects.next, self.effects.final) if trajectory.steps else []

    def _total(
        self, trajectory: Trajectory, outputs: Sequence[torch.Tensor], weights: torch.Tensor | None = None
    ) -> Moments:
        """Return the moments of a request on all ranks, its samples weighted."""
        if not trajectory.steps:
            return Moments(self.sigmas, self.ranks.total(None))
        entered = trajectory.entered() if len(self.references) >= ENOUGH_FOR_LATENTS else None
        return Moments(self.sigmas, self.ranks.total(moments_of(outputs, self.sigmas, entered, weights).gram.cpu()))


def better(old: Attempt, new: Attempt) -> Attempt:
    """Return the new attempt if its mean gain over the samples is above its standard error, else the old one."""
    gains = np.subtract(new.decibels, old.decibels)
    error = gains.std(ddof=1) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
    return new if gains.mean() > error else old


def _halves(moments: Sequence[Moments], without: int | None = None) -> Halves:
    """Return the sums of the requests that fits are solved from, and of those that judge them.

    One of them may be left out, to be an impartial witness; where there is one alone, it has all parts.
    """
    parts = [part for index, part in enumerate(moments) if index != without] or list(moments)
    judging = parts[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY] or parts[-1:]
    training = [part for part in parts if not any(part is judge for judge in judging)] or judging
    return Halves(_sum(training), _sum(judging))


def _sum(moments: Sequence[Moments]) -> Moments:
    return Moments(moments[0].sigmas, torch.stack([part.gram for part in moments]).sum(dim=0))
