"""Refits the stand-ins of a mask on the trajectory that the mask and these stand-ins lead to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.approx.fitted import Fitted, Refitted
from fastcache_xdit.approx.moments import Halves, Moments
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.decision.schedule import computed_steps, skipped_steps
from fastcache_xdit.host.xdit import world
from fastcache_xdit.segments.segment import Segment
from fastcache_xdit.tuning.calls import Call
from fastcache_xdit.tuning.coverage import is_held_out
from fastcache_xdit.tuning.recorder import record
from fastcache_xdit.tuning.runner import Runner

ROUNDS = 2
BASE_WEIGHT = 0.3  # of the calibration's moments relative to the new ones, which come from fewer prompts

Refits = dict[Refitted, torch.Tensor]


class Refitter:
    """Refits masks at one number of steps.

    Args:
        runner: the model.
        calls: what to fit on, all of one number of steps; at least `HELD_OUT_EVERY`.
        base: the calibration to refine.
    """

    def __init__(self, runner: Runner, calls: Sequence[Call], base: Calibration) -> None:
        self.runner = runner
        self.calls = calls
        self.base = base

    def refit(self, config: FastCacheConfig) -> Refits:
        """Return coefficients of a mask's stand-ins, refitted on its own trajectory; every rank must call it."""
        segment = Segment(0, tuple(self.runner.blocks[config.lead_blocks :]))
        sums: dict[str, dict[str, dict[str, Moments]]] = {half: {} for half in Halves._fields}
        refits: Refits = {}
        for _ in range(ROUNDS):
            calibration = replace(self.base, refits=refits)
            for index, call in enumerate(self.calls):
                recorder = record(self.runner, call, config, calibration, [segment])
                recorder.add_to(sums["held_out" if is_held_out(index) else "training"], self.runner.sigmas())
            refits = self._fit(segment.key, config, *(sums[half][segment.key] for half in Halves._fields))
        return refits

    def _fit(
        self, key: str, config: FastCacheConfig, training: dict[str, Moments], held_out: dict[str, Moments]
    ) -> Refits:
        sigmas = tuple(self.runner.sigmas())
        base = {stream: halves.at(sigmas) for stream, halves in self.base.moments[key].items()}
        halves = {
            stream: Halves(
                _blended(training[stream], base[stream].training), _blended(held_out[stream], base[stream].held_out)
            )
            for stream in sorted(training)
        }
        fitted = Fitted(config.stand_in, halves, coherence=self.base.coherence)
        refits: Refits = {}
        for step, computed in skipped_steps(computed_steps(config.schedule or {}, len(sigmas))):
            for stream in halves:
                refitted = Refitted(key, config.stand_in, sigmas, stream, step, computed[: fitted.references])
                refits[refitted] = fitted.coefficients(stream, step, computed).float()
        return refits


def _blended(new: Moments, old: Moments) -> Moments:
    """Return the new moments of all ranks plus the scaled old ones."""
    new = Moments(new.sigmas, world.sum_over_ranks(new.gram))
    scale = BASE_WEIGHT * _energy(new) / _energy(old)
    return new.plus(Moments(new.sigmas, scale * old.gram))


def _energy(moments: Moments) -> torch.Tensor:
    return moments.gram.diagonal(dim1=-2, dim2=-1).sum()
