"""Fits stand-ins anew for one mask, on the trajectory that the mask and these stand-ins themselves lead to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.approx.fitted import Fitted, Halves, Refitted
from fastcache_xdit.approx.moments import Moments
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.decision.schedule import mask_for, skips
from fastcache_xdit.host.xdit import world
from fastcache_xdit.host.xdit.engine import Batch
from fastcache_xdit.segments.segment import Segment
from fastcache_xdit.tuning.calibrate import HELD_OUT_EVERY
from fastcache_xdit.tuning.recorder import recorded
from fastcache_xdit.tuning.runner import Runner

ROUNDS = 2
BASE_SHARE = 0.3  # of the calibration's moments, to the new ones' 1: few prompts do not overrule many

Refits = dict[Refitted, torch.Tensor]


class Refitter:
    """Refits masks at one number of steps.

    Args:
        runner: the model; its call has the number of steps.
        batches: prompts to fit on, at least `HELD_OUT_EVERY` batches.
        base: the calibration file that refits refine.
        working: where refits are kept for the caches that try them.
    """

    def __init__(self, runner: Runner, batches: Sequence[Batch], base: str, working: Path) -> None:
        self.runner = runner
        self.batches = batches
        self.base = base
        self.working = working

    def refit(self, config: FastCacheConfig) -> tuple[FastCacheConfig, Refits]:
        """The config with refitted stand-ins (in the working file), and these; every rank must call it."""
        segment = Segment(0, tuple(self.runner.blocks[config.lead_blocks :]))
        sums: dict[str, dict[str, dict[str, Moments]]] = {half: {} for half in Halves._fields}
        refits: Refits = {}
        for _ in range(ROUNDS):
            for index, batch in enumerate(self.batches):
                half = "held_out" if index % HELD_OUT_EVERY == HELD_OUT_EVERY - 1 else "training"
                seen = recorded(self.runner, batch, config, [segment], witness=lambda *_: None)
                seen.add_to(sums[half], self.runner.sigmas())
            refits = self._fitted(segment.key, config, *(sums[half][segment.key] for half in Halves._fields))
            config = self.publish(config, refits)
        return config, refits

    def publish(self, config: FastCacheConfig, refits: Refits) -> FastCacheConfig:
        """Put refits where ranks' caches find them."""
        world.barrier()
        if world.rank() == 0:
            replace(Calibration.shared(self.base), refits=refits).save_refits(self.working, self.base)
        world.barrier()
        return config.model_copy(update={"calibration": str(self.working)})

    def _fitted(
        self, key: str, config: FastCacheConfig, training: dict[str, Moments], held_out: dict[str, Moments]
    ) -> Refits:
        base, sigmas = Calibration.shared(self.base), tuple(self.runner.sigmas())
        known = {stream: halves.at(sigmas) for stream, halves in base.moments[key].items()}
        halves = {
            stream: Halves(
                _blended(training[stream], known[stream].training), _blended(held_out[stream], known[stream].held_out)
            )
            for stream in sorted(training)
        }
        fitted = Fitted(config.stand_in, halves, coherence=base.coherence)
        found: Refits = {}
        for step, computed in skips(mask_for(config.schedule or {}, len(sigmas))):
            for stream in halves:
                name = Refitted(key, config.stand_in, sigmas, stream, step, computed[: fitted.references])
                found[name] = fitted.coefficients(stream, step, computed).float()
        return found


def _blended(new: Moments, old: Moments) -> Moments:
    """New moments of all ranks, and old ones."""
    new = Moments(new.sigmas, world.sum_over_ranks(new.gram))
    scale = BASE_SHARE * _energy(new) / _energy(old)
    return new.plus(Moments(new.sigmas, scale * old.gram))


def _energy(moments: Moments) -> torch.Tensor:
    return moments.gram.diagonal(dim1=-2, dim2=-1).sum()
