"""The data for the calibrated test: for each decision and sample, the change that it saw and the error of a skip."""

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

    Attributes:
        step: denoising step.
        skipped: number of steps skipped in a row before it.
        change: relative change of the entering states.
        motion: relative variance of the tokens' saliencies.
        error: relative error of the stand-in's output, whether it was used or not.
        was_skipped: whether it was used.
    """

    step: int
    skipped: int
    change: float
    motion: float
    error: float
    was_skipped: bool


class Pairs(Observer):
    """Collects the sums of every decision of a request; ranks add them up at the end."""

    sees_segments = runs_skipped = True

    def __init__(self) -> None:
        self._decisions: list[tuple[int, int, bool]] = []  # (step, skipped in a row before it, was skipped)
        self._sums: list[torch.Tensor] = []
        self._run = 0

    def on_segment(self, segment: Segment, call: SegmentCall, output: Streams, estimate: Streams) -> None:
        """Store the change that the decision saw and the error of the stand-in."""
        error = ErrorSums.measured(output.hidden_states, estimate.hidden_states)
        skip = call.decision.skip
        self._run = self._run + 1 if skip else 0
        self._decisions.append((call.tick.step, self._run - skip, skip))
        self._sums.append(torch.cat([call.state.change(call.entered).packed(), error.packed()], dim=1).cpu())

    def collected(self) -> list[Pair]:
        """Return all pairs of the request, the same on every rank; every rank must call it."""
        if not self._sums:
            return []
        total = world.sum_over_ranks(torch.stack(self._sums))
        columns = len(ChangeSums._fields)
        change, error = ChangeSums.unpacked(total[..., :columns]), ErrorSums(*total[..., columns:].unbind(-1))
        by_decision = torch.stack([change.relative, change.motion, error.relative], dim=-1).tolist()
        return [
            Pair(step, run, relative_change, motion, relative_error, was_skipped)
            for (step, run, was_skipped), samples in zip(self._decisions, by_decision, strict=True)
            for relative_change, motion, relative_error in samples
        ]


def rms(values: Sequence[float]) -> float:
    """Return the root mean square."""
    return math.sqrt(sum(value * value for value in values) / len(values))


def fit_spread(pairs: Sequence[Pair], gains: Sequence[float], sigmas: Sequence[float]) -> Spread:
    """Fit the error model of the calibrated test to pairs.

    Null by step, factor by run, adaptive threshold and degrees of freedom are fitted in this order, each to the ratio
    error^2 / change^2 divided by the factors before it; errors are those of the final latents.

    Args:
        pairs: the observations.
        gains: for each step, the relative error of the final latents per relative error at the step.
        sigmas: noise level of each step.
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
    """Return the mean ratio at each step; missing steps are interpolated in logarithms."""
    observed = np.unique(step)
    means = np.array([ratio[step == number].mean() for number in observed])
    return np.exp(np.interp(np.arange(count), observed, np.log(np.maximum(means, 1e-30))))
