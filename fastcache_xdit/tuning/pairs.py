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
from fastcache_xdit.runtime.call import SegmentCall
from fastcache_xdit.runtime.observer import Observer
from fastcache_xdit.segments.segment import Segment
from fastcache_xdit.segments.sums import ChangeSums, ErrorSums


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


class Pairs(Observer):
    """Keeps local sums of every decision of a request, and adds them up over ranks in the end."""

    sees_segments = runs_skipped = True

    def __init__(self) -> None:
        self._places: list[tuple[int, int, bool]] = []
        self._sums: list[torch.Tensor] = []
        self._run = 0

    def on_segment(self, segment: Segment, call: SegmentCall, output: Streams, estimate: Streams) -> None:
        """Keep what the decision saw, and the error that the stand-in makes."""
        error = ErrorSums.measured(output.hidden_states, estimate.hidden_states)
        skip = call.decision.skip
        self._run = self._run + 1 if skip else 0
        self._places.append((call.tick.step, self._run - skip, skip))
        self._sums.append(torch.cat([call.state.change(call.entered).packed(), error.packed()], dim=1).cpu())

    def collected(self) -> list[Pair]:
        """Return all pairs, the same on every rank; every rank must call it."""
        if not self._sums:
            return []
        total = world.sum_over_ranks(torch.stack(self._sums))
        columns = len(ChangeSums._fields)
        change, error = ChangeSums.unpacked(total[..., :columns]), ErrorSums(*total[..., columns:].unbind(-1))
        by_place = torch.stack([change.relative, change.motion, error.relative], dim=-1).tolist()
        return [
            Pair(step, run, relative_change, motion, relative_error, was_skipped)
            for (step, run, was_skipped), samples in zip(self._places, by_place, strict=True)
            for relative_change, motion, relative_error in samples
        ]


def rms(values: Sequence[float]) -> float:
    """Return the root of the mean square."""
    return math.sqrt(sum(value * value for value in values) / len(values))


def fit_spread(pairs: Sequence[Pair], gains: Sequence[float], sigmas: Sequence[float]) -> Spread:
    """Fit the calibrated test to pairs: null per step, factor per run, adaptive threshold, degrees of freedom.

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
