"""What differs between the shipped models when they are trained, exported and evaluated."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import nn

from .checker import Score


class Batch(NamedTuple):
    """Arguments of the trained module, and what it should return (float32)."""

    inputs: tuple[torch.Tensor, ...]
    target: torch.Tensor


class Stream(Protocol):
    """Endless training batches."""

    def next(self, count: int) -> Batch:
        """A batch of ``count`` scenes, each used with several draws of noise."""


@dataclass(frozen=True, kw_only=True)
class VaeRecipe:
    """How an autoencoder is trained.

    Attributes:
        build: one with random weights.
        load: one from its folder, in float32.
        decode: what the autoencoder makes of latents, with a gradient everywhere.
        batch: images (N, 3, H, W) or videos (N, 3, F, H, W), float32 in [-1, 1], whole ones or cheaper crops (True).
        statistics: entries of the autoencoder's config that bring latents (N, C, ...) to unit variance.
    """

    build: Callable[[], Any]
    load: Callable[[Path], Any]
    decode: Callable[[Any, torch.Tensor], torch.Tensor]
    batch: Callable[[random.Random, bool], torch.Tensor]
    statistics: Callable[[torch.Tensor], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one model is made.

    Attributes:
        vae: the autoencoder, which is trained first.
        parts: all that is trained jointly as one module with its transformer under ``transformer``, with random weights
            or with those of a pipeline folder.
        stream: training batches, given the folder of the trained autoencoder; scenes come from the generator.
        pipeline: the whole pipeline around the trained module and the autoencoder in the given folder.
        defaults: arguments that the pipeline's call needs, kept in ``generation.json``.
        prompts: so many different captions that take no part in training, by seed.
        check: compares a result (uint8, (H, W, 3), or (F, H, W, 3) for videos) with its prompt.
    """

    vae: VaeRecipe
    parts: Callable[[Path | None], nn.Module]
    stream: Callable[[Path, random.Random], Stream]
    pipeline: Callable[[Any, Path], DiffusionPipeline]
    defaults: dict[str, Any]
    prompts: Callable[[int, int], list[str]]
    check: Callable[[np.ndarray, str], Score]
