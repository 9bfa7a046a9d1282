"""Generates batches over all ranks for calibration, tuning and benchmarks; every rank receives the results."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.host.base import Host
from fastcache_xdit.host.find import host_of
from fastcache_xdit.host.xdit import world
from fastcache_xdit.host.xdit.engine import Batch, Engine
from fastcache_xdit.plugin import fastcache, repaired
from fastcache_xdit.runtime.observer import Observer
from fastcache_xdit.segments.segment import Block


class Runner:
    """A model with fixed call arguments.

    Args:
        engine: the model.
        call: arguments of every pipeline call, at least `num_inference_steps`.
        region: mask of an edit, for configs with `tokens.score: region`.
    """

    def __init__(self, engine: Engine, call: dict[str, Any], region: torch.Tensor | None = None) -> None:
        self.engine = engine
        self.call = call
        self.region = region

    @property
    def host(self) -> Host:
        """The host of the model."""
        return host_of(self.engine.pipe)

    @property
    def blocks(self) -> list[Block]:
        """The blocks of this rank, in running order."""
        return self.host.blocks

    @property
    def block_names(self) -> list[str]:
        """The names of these blocks."""
        return [block.name for block in self.blocks]

    def steps(self, num_inference_steps: int) -> Runner:
        """Return a runner of the same model with another number of steps."""
        return Runner(self.engine, {**self.call, "num_inference_steps": num_inference_steps}, self.region)

    def sigmas(self) -> list[float]:
        """Return the noise level of each step of the last request."""
        scheduler = self.engine.pipe.scheduler
        return [float(timestep) / scheduler.config.num_train_timesteps for timestep in scheduler.timesteps.tolist()]

    def images(self, batch: Batch, config: FastCacheConfig | None, calibration: Calibration | None = None) -> list[Any]:
        """Generate PIL images, with the cache turned on for this batch or without a cache."""
        with self.enabled(config, calibration) if config else repaired(self.engine.pipe):
            parts = world.all_gather_objects(self.engine.generate(batch, **self.call))
        images = {index: image for part in parts for index, image in part.items()}
        return [images[request.index] for request in batch]

    def uncached(self, batch: Batch) -> torch.Tensor:
        """Generate final latents [B, ...] without the cache."""
        with repaired(self.engine.pipe):
            return self._latents(batch)

    @contextlib.contextmanager
    def enabled(
        self, config: FastCacheConfig, calibration: Calibration | None = None, observer: Observer | None = None
    ) -> Iterator[Callable[[Batch], torch.Tensor]]:
        """Turn the cache on inside a with block, and yield what generates final latents; arguments as in `enable`."""
        with fastcache(self.engine.pipe, config, calibration=calibration, observer=observer) as handle:
            if config.tokens and config.tokens.score == "region":
                handle.focus(self.region)
            yield self._latents

    def _latents(self, batch: Batch) -> torch.Tensor:
        own = self.engine.generate(batch, **{**self.call, "output_type": "latent"})
        latents = {index: latent for part in world.all_gather_objects(own) for index, latent in part.items()}
        return torch.stack([latents[request.index].float().cpu() for request in batch])


def relative_error(latents: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return the norm of the difference over the norm of the reference for each sample, [B, ...] -> [B]."""
    return (latents - reference).flatten(1).norm(dim=1) / reference.flatten(1).norm(dim=1)
