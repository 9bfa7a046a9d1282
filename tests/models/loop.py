"""A sampling loop of a user's own around a tiny model, and the cache that it is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fastcache_xdit import FastCacheConfig, fastcache
from tests.models.zoo import Entry, arguments_at, output_of, overlap

MASK = "110101"
STEPS = len(MASK)
SIGMAS = [1 - step / STEPS for step in range(STEPS)]
STEP_LENGTH = 0.05


class Loop:
    """A tiny model in a sampling loop.

    Args:
        entry: what the model is called with.
        model: the model, which the cache is given to.
        call: calls it; None for the model itself.
    """

    def __init__(self, entry: Entry, model: nn.Module, call: Callable[..., Any] | None = None) -> None:
        self.entry = entry
        self.model = model
        self._call = call or model

    def generate(self, scale: float = 1.0) -> torch.Tensor:
        latents = _each(lambda part: part * scale, self.entry.arguments()[self.entry.latents])
        with torch.no_grad():
            for step in range(STEPS):
                output = output_of(self._call(**arguments_at(self.entry, latents, step / STEPS)))
                latents = _each(_stepped, latents, output)
        return _flat(latents)

    def cached(self, mask: str, granularity: str):
        config = FastCacheConfig.scheduled(mask).model_copy(update={"granularity": granularity, "groups": 3})
        return fastcache(self.model, config, sigmas=SIGMAS)

    def start(self) -> torch.Tensor:
        return _flat(self.entry.arguments()[self.entry.latents])


def _flat(latents) -> torch.Tensor:
    return torch.cat([part.flatten() for part in (latents if isinstance(latents, list) else [latents])])


def _each(change, first, *others):
    if isinstance(first, list):
        return [change(*parts) for parts in zip(first, *others, strict=True)]
    return change(first, *others)


def _stepped(latents, output):
    latents = latents.clone()
    predicted, moved = overlap(output, latents)
    moved -= STEP_LENGTH * predicted
    return latents
