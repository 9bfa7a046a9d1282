"""Runs calls over all ranks for calibration, tuning and benchmarks; every rank receives the results."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.approx.pooled import pooled
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.host import cpu
from fastcache_xdit.host.base import Host
from fastcache_xdit.host.find import host_of
from fastcache_xdit.host.listening import sigmas_of
from fastcache_xdit.host.xdit import world
from fastcache_xdit.plugin import fastcache, repaired
from fastcache_xdit.runtime.observer import Observer
from fastcache_xdit.segments.segment import Block
from fastcache_xdit.telling import rehearsal
from fastcache_xdit.tuning.calls import Branch, Call
from fastcache_xdit.undo import Undo


class Runner:
    """A model that calls are run on, with and without the cache.

    Args:
        target: a pipeline, or a transformer in a user's own loop.
        sigmas: noise level of each step, 1 to 0, for a loop without a scheduler.
        region: mask of an edit, for configs with `tokens.score: region`.
    """

    def __init__(self, target: Any, sigmas: Sequence[float] | None = None, region: torch.Tensor | None = None) -> None:
        self.target = target
        self.region = region
        self._sigmas = sigmas
        self._call = target
        self._branch: Branch = contextlib.nullcontext

    @property
    def host(self) -> Host:
        """The host of the model."""
        return host_of(self.target, self._sigmas)

    @property
    def blocks(self) -> list[Block]:
        """The blocks of this rank, in running order."""
        return self.host.blocks

    @property
    def block_names(self) -> list[str]:
        """The names of these blocks."""
        return [block.name for block in self.blocks]

    def sigmas(self) -> list[float]:
        """Return the noise level of each step of the last request."""
        read = sigmas_of(self.host)
        return read() if read else []

    def images(self, call: Call, config: FastCacheConfig | None, calibration: Calibration | None = None) -> list[Any]:
        """Return PIL images, or a loop's latents, with the cache turned on for this call or without a cache."""
        with self.enabled(config, calibration) if config else repaired(self.target):
            return self._samples(call, "pil")

    def uncached(self, call: Call) -> torch.Tensor:
        """Return final latents [B, ...] without the cache."""
        with repaired(self.target):
            return self._latents(call)

    def reordered(self, call: Call) -> torch.Tensor:
        """Return final latents as `uncached` does, but for rounding: the transformer's batches are in reverse order."""
        transformer = self.host.transformer
        with Undo() as undo:
            undo.set(transformer, "forward", _reversing(transformer.forward))
            return self.uncached(call)

    @contextlib.contextmanager
    def enabled(
        self, config: FastCacheConfig, calibration: Calibration | None = None, observer: Observer | None = None
    ) -> Iterator[Callable[[Call], torch.Tensor]]:
        """Turn the cache on inside a with block, and yield what makes final latents; arguments as in `enable`."""
        options: dict[str, Any] = {"calibration": calibration, "observer": observer, "sigmas": self._sigmas}
        with rehearsal(), fastcache(self.target, config, **options) as handle:
            if config.tokens and config.tokens.score == "region":
                handle.focus(self.region)
            self._branch = handle.branch
            try:
                yield self._latents
            finally:
                self._branch = contextlib.nullcontext

    def learnt(self, calls: Sequence[Call], config: FastCacheConfig) -> Calibration | None:
        """Return what is learnt from calls of a pipeline while they are served; None where nothing is."""
        with rehearsal(), fastcache(self.target, config, calibration=pooled()) as handle:
            for call in calls:
                self._latents(call)
            return handle.learnt

    @contextlib.contextmanager
    def differentiable(self) -> Iterator[None]:
        """Let latents keep their graph for the length of a with block; in one process only.

        Pipeline calls forbid gradients, so the function inside is called: for xDiT in one process, diffusers' own.
        """
        pipe = getattr(self.target, "module", self.target)
        self._call = functools.partial(inspect.unwrap(type(pipe).__call__), pipe)
        try:
            yield
        finally:
            self._call = self.target

    def _latents(self, call: Call) -> torch.Tensor:
        return torch.stack([torch.as_tensor(latents).float().cpu() for latents in self._samples(call, "latent")])

    def _samples(self, call: Call, output_type: str) -> list[Any]:
        """Return the samples of all replicas, each by its first rank that holds some, in the order of the replicas."""
        with _seeded(call.seed):
            own = call.run(self._call, output_type, self._branch)
        everyone = world.all_gather_objects(own)
        size = len(everyone) // self.host.topology.data_parallel_degree
        replicas = [everyone[start : start + size] for start in range(0, len(everyone), size)]
        return [sample for ranks in replicas for sample in next(part for part in ranks if part)]


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's own random numbers inside a with block, and leave them as they were."""
    with torch.random.fork_rng([torch.cuda.current_device()] if cpu.has_accelerator() else []):
        torch.manual_seed(seed)
        yield


def _reversing(original: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        batch = len(signature.bind(*args, **kwargs).arguments["hidden_states"])

        def flipped(value: Any) -> Any:
            is_batch = isinstance(value, torch.Tensor) and value.dim() > 0 and len(value) == batch
            return value.flip(0) if is_batch else value

        args, kwargs = pytree.tree_map(flipped, (args, kwargs))
        return pytree.tree_map(flipped, original(*args, **kwargs))

    return forward


def relative_error(latents: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return the norm of the difference over the norm of the reference for each sample, [B, ...] -> [B]."""
    return (latents - reference).flatten(1).norm(dim=1) / reference.flatten(1).norm(dim=1)
