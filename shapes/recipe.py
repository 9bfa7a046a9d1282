"""What differs between the models when they are trained, exported and evaluated."""

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


class TrainingBatch(NamedTuple):
    """Arguments for the trained module, and the output (float32) that it should give."""

    inputs: tuple[torch.Tensor, ...]
    target: torch.Tensor


class Stream(Protocol):
    """A source of endless training batches."""

    def next(self, count: int) -> TrainingBatch:
        """Make a batch of `count` scenes, each with several draws of noise."""


@dataclass(frozen=True, kw_only=True)
class VaeRecipe:
    """How an autoencoder is trained.

    Attributes:
        build: makes an autoencoder with random weights.
        load: reads one from its folder, in float32.
        decode: turns latents into pictures, with a gradient everywhere.
        batch: draws images [N, 3, H, W] or videos [N, 3, F, H, W], float32 in -1..1; crops, which are cheaper, if True.
        statistics: gives the entries of the autoencoder's config that bring latents [N, C, ...] to unit variance.
    """

    build: Callable[[], Any]
    load: Callable[[Path], Any]
    decode: Callable[[Any, torch.Tensor], torch.Tensor]
    batch: Callable[[random.Random, bool], torch.Tensor]
    statistics: Callable[[torch.Tensor], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """How one model is made.

    Attributes:
        vae: the autoencoder, which is trained first.
        parts: gives everything that is trained jointly as one module, its transformer under `transformer`: from a
            pipeline folder, or with random weights if None.
        stream: gives training batches, from the folder of the trained autoencoder and a generator of scenes.
        pipeline: puts the pipeline together from the trained module and the autoencoder's folder.
        defaults: arguments that the pipeline's call needs, kept in `generation.json`.
        prompts: gives so many captions that take no part in training, by seed.
        check: compares a picture (uint8 [H, W, 3], or [F, H, W, 3] of a video) with its prompt.
    """

    vae: VaeRecipe
    parts: Callable[[Path | None], nn.Module]
    stream: Callable[[Path, random.Random], Stream]
    pipeline: Callable[[Any, Path], DiffusionPipeline]
    defaults: dict[str, Any]
    prompts: Callable[[int, int], list[str]]
    check: Callable[[np.ndarray, str], Score]
