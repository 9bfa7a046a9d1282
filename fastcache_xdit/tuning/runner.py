"""Generates batches on every rank for calibration, tuning and benchmarks: final latents, known to all ranks."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.host.base import Host
from fastcache_xdit.host.find import host_of
from fastcache_xdit.host.xdit import world
from fastcache_xdit.host.xdit.engine import Batch, Engine
from fastcache_xdit.models.catalogue import spec_for
from fastcache_xdit.plugin import Handle, fastcache, repaired
from fastcache_xdit.segments.segment import Block, blocks_of


class Runner:
    """One model with fixed call arguments; `call` holds at least `num_inference_steps`.

    `region` is the mask of an edit, for configs whose partial steps compute that alone.
    """

    def __init__(self, engine: Engine, call: dict[str, Any], region: torch.Tensor | None = None) -> None:
        self.engine = engine
        self.call = call
        self.region = region

    @property
    def host(self) -> Host:
        """Where the model runs."""
        return host_of(self.engine.pipe)

    @property
    def blocks(self) -> list[Block]:
        """All blocks of this rank in running order."""
        return blocks_of(self.host.model, spec_for(self.host.model), self.host.offsets, self.host.lengths)

    @property
    def block_names(self) -> list[str]:
        """Their names."""
        return [block.name for block in self.blocks]

    def steps(self, num_inference_steps: int) -> Runner:
        """The same with another number of steps."""
        return Runner(self.engine, {**self.call, "num_inference_steps": num_inference_steps}, self.region)

    def sigmas(self) -> list[float]:
        """Noise level of each step of the last request."""
        scheduler = self.engine.pipe.scheduler
        return [float(timestep) / scheduler.config.num_train_timesteps for timestep in scheduler.timesteps.tolist()]

    def images(self, batch: Batch, config: FastCacheConfig | None) -> list[Any]:
        """PIL images, with a cache of its own or without one."""
        with self.enabled(config) if config else repaired(self.engine.pipe):
            everyone = {
                index: image
                for part in world.all_gather_objects(self.engine.generate(batch, **self.call))
                for index, image in part.items()
            }
        return [everyone[request.index] for request in batch]

    def uncached(self, batch: Batch) -> torch.Tensor:
        """Final latents [B, ...] without the cache."""
        with repaired(self.engine.pipe):
            return self._latents(batch)

    @contextlib.contextmanager
    def enabled(self, config: FastCacheConfig) -> Any:
        """The cache on, for callers that watch it: gives (handle, generate)."""
        with fastcache(self.engine.pipe, config) as handle:
            if config.tokens and config.tokens.score == "region":
                handle.focus(self.region)
            yield _Watched(handle, self)

    def _latents(self, batch: Batch) -> torch.Tensor:
        mine = self.engine.generate(batch, **{**self.call, "output_type": "latent"})
        everyone = {index: latents for part in world.all_gather_objects(mine) for index, latents in part.items()}
        return torch.stack([everyone[request.index].float().cpu() for request in batch])


class _Watched:
    def __init__(self, handle: Handle, runner: Runner) -> None:
        self.handle = handle
        self._runner = runner

    def generate(self, batch: Batch) -> torch.Tensor:
        return self._runner._latents(batch)


def relative_error(latents: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """[B]: norm of the difference over the norm of `truth`, sample by sample."""
    difference, whole = (latents - truth).flatten(1), truth.flatten(1)
    return difference.norm(dim=1) / whole.norm(dim=1)
