"""What decisions saw and what they cost, sample by sample: the data behind the calibrated test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from fastcache_xdit.decision.significance import Spread
from fastcache_xdit.host.xdit import world
from fastcache_xdit.models.spec import Streams
from fastcache_xdit.runtime.driver import Pass
from fastcache_xdit.segments.segment import Segment
from fastcache_xdit.segments.state import energy


class Pair(NamedTuple):
    """One decision for one sample of a batch.

    `skipped` counts the steps skipped in a row before it, `change` and `error` are relative norms, `error` what the
    stand-in did or would have done to the segment's output.
    """

    step: int
    skipped: int
    change: float
    motion: float
    error: float
    was_skipped: bool


class Pairs:
    """A driver's `Witness`: keeps local sums on the way, and adds them up over ranks in the end."""

    def __init__(self) -> None:
        self._places: list[tuple[int, int, bool]] = []
        self._sums: list[torch.Tensor] = []
        self._run = 0

    def __call__(self, segment: Segment, step: Pass, left: Streams, guess: Streams) -> None:
        """See `Witness`."""
        missed = energy(left.hidden_states - guess.hidden_states), energy(left.hidden_states)
        sums = torch.cat([step.state.change(step.entered), torch.stack(missed, dim=1)], dim=1)
        self._run = self._run + 1 if step.decision.skip else 0
        self._places.append((step.tick.step, self._run - step.decision.skip, step.decision.skip))
        self._sums.append(sums.cpu())

    def collected(self) -> list[Pair]:
        """All pairs, the same on every rank; every rank must call it."""
        if not self._sums:
            return []
        total = world.sum_over_ranks(torch.stack(self._sums))
        change, reference, saliency, tokens, missed, output = total.unbind(-1)
        relative, motion = (change / reference).sqrt(), (tokens * saliency / change.square() - 1).nan_to_num(0.0)
        error = (missed / output).sqrt()
        seen = torch.stack([relative, motion, error], dim=-1).tolist()
        return [
            Pair(step, run, change, motion, error, was_skipped)
            for (step, run, was_skipped), samples in zip(self._places, seen, strict=True)
            for change, motion, error in samples
        ]


def rms(values: Sequence[float]) -> float:
    """Root of the mean square."""
    return math.sqrt(sum(value * value for value in values) / len(values))


def fit_spread(pairs: Sequence[Pair], gains: Sequence[float], sigmas: Sequence[float]) -> Spread:
    """The calibrated test from pairs: null per step, factor per run, adaptive threshold, degrees of freedom.

    Each in turn explains what the ones before leave of error^2 / change^2; errors are those of the final latents.
    """
    step = np.array([pair.step for pair in pairs])
    run = np.array([pair.skipped for pair in pairs])
    motion = np.array([pair.motion for pair in pairs])
    error = np.array([gains[pair.step] * pair.error for pair in pairs])
    ratio = error**2 / np.maximum(np.array([pair.change for pair in pairs]) ** 2, 1e-30)
    null = _by_step(step, ratio, len(sigmas))
    ratio = ratio / null[step]
    runs = [ratio[run == length].mean() for length in range(run.max() + 1) if (run == length).any()]
    ratio = ratio / np.array(runs)[np.minimum(run, len(runs) - 1)]
    t = step / max(len(sigmas) - 1, 1)
    columns = np.stack([np.ones_like(t), motion, t, t * t], axis=1)
    trajectory = np.linalg.lstsq(columns, ratio, rcond=None)[0]
    ratio = ratio / np.maximum(columns @ trajectory, 0.05)
    dof = 2 * ratio.mean() ** 2 / ratio.var()
    return Spread(tuple(sigmas), tuple(null.tolist()), tuple(map(float, runs)), tuple(trajectory.tolist()), float(dof))


def _by_step(step: np.ndarray, ratio: np.ndarray, count: int) -> np.ndarray:
    """Mean of `ratio` at each step; steps never seen take their neighbours', in logarithms."""
    seen = np.unique(step)
    means = np.array([ratio[step == each].mean() for each in seen])
    return np.exp(np.interp(np.arange(count), seen, np.log(np.maximum(means, 1e-30))))
