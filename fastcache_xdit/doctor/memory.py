"""Compute what a cache will hold for one picture or clip, from the configs of a model; no weights are read."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.approx.linear import kept_dtype
from fastcache_xdit.approx.output import REFERENCES
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.doctor.finding import Finding
from fastcache_xdit.errors import UsageError
from fastcache_xdit.host.identity import saved_models
from fastcache_xdit.host.xdit import checkpoint
from fastcache_xdit.learning.trajectory import MOST_ROWS
from fastcache_xdit.models.architectures import Architecture
from fastcache_xdit.models.catalogue import spec_named
from fastcache_xdit.models.spec import ENCODER, HIDDEN, BlockSpec, ModelSpec
from fastcache_xdit.models.tried import Tried, all_tried
from fastcache_xdit.runtime.stand_ins import StandIns
from fastcache_xdit.segments.segment import Segment, blocks_of, partition
from fastcache_xdit.segments.state import tensors_kept

CLIP_TOKENS = 77  # that Stable Diffusion 3 puts before those of T5


@dataclass(frozen=True)
class RequestSize:
    """What is asked for.

    Attributes:
        height, width: in pixels.
        frames: of a clip; 1 for a picture.
        steps: of the scheduler; None for the pipeline's own number.
        dtype: that the model computes in.
        text: tokens of the prompt that the model is given; None for the most that its pipeline makes.
    """

    height: int
    width: int
    frames: int = 1
    steps: int | None = None
    dtype: torch.dtype = torch.bfloat16
    text: int | None = None


@dataclass(frozen=True)
class Denoiser:
    """A pipeline of which the configs alone are known.

    Attributes:
        model: its transformer, on the meta device.
        pipeline: name of its class.
        pixels: width and height of one token.
        frames: of a clip for one of its latents; 1 for pictures.
    """

    model: Any
    pipeline: str
    pixels: int
    frames: int

    @classmethod
    def saved(cls, folder: Path) -> Denoiser:
        """Read the configs of a pipeline in a folder. Raises UsageError where it holds none."""
        frames = checkpoint.frames_per_latent(folder)
        return cls(
            saved_models(folder)[0], checkpoint.pipeline_class(folder), checkpoint.pixels_per_token(folder), frames
        )

    @classmethod
    def published(cls, architecture: Architecture) -> Denoiser:
        """Take a published model's config."""
        with torch.device("meta"):
            model = getattr(diffusers, architecture.transformer)(**architecture.config)
        return cls(model, architecture.pipeline, architecture.pixels_per_token, architecture.frames_per_latent)

    @property
    def defaults(self) -> Mapping[str, Any]:
        """What the pipeline is called with where a call does not say."""
        parameters = inspect.signature(getattr(diffusers, self.pipeline).__call__).parameters
        return {name: parameter.default for name, parameter in parameters.items()}

    @property
    def branches(self) -> int:
        """How many branches of guidance its calls have."""
        scale = self.defaults.get("true_cfg_scale", self.defaults.get("guidance_scale")) or 1.0
        return 1 if scale <= 1 or self.model.config.get("guidance_embeds") else 2

    @property
    def spec(self) -> ModelSpec:
        """The description of the model's blocks: the catalogue's, or what was found when its class was tried.

        Raises:
            UsageError: neither knows it.
        """
        name = type(self.model).__name__
        known = spec_named(name)
        if known.blocks:
            return known
        streams = all_tried().get(name, Tried()).streams
        if not streams:
            raise UsageError(f"the blocks of {name} are found out in its first call", "leave granularity out")
        return ModelSpec(name, {blocks: _block(found) for blocks, found in streams.items()})


@dataclass(frozen=True)
class Held:
    """Bytes that a cache holds for one picture or clip, on a single rank.

    Attributes:
        cached: what `Report.bytes_held` says once a request was made, without weights solved from a calibration.
        learning: beside it, the records of the requests that are learnt from; 0 where nothing is learnt.
    """

    cached: int
    learning: int = 0


def held(denoiser: Denoiser, config: FastCacheConfig, request: RequestSize) -> Held:
    """Compute what a cache with these options holds.

    Raises:
        UsageError: the config skips blocks of a model of which they are not known, or as `Calibration.cached`.
    """
    if config.granularity != "output":
        return Held(_blocks(denoiser, config, request))
    steps = request.steps or denoiser.defaults.get("num_inference_steps") or 50
    moments = 2 * (2 * steps + 1) ** 2 * torch.float64.itemsize  # of both halves, at the request's noise levels
    size = kept_dtype(config.reference_dtype, request.dtype).itemsize
    outputs = REFERENCES * _handed(denoiser, request) * size + _returned(denoiser, request) * request.dtype.itemsize
    records = config.learn * (2 * steps + 1) * _recorded(denoiser, request) if config.test == "plan" else 0
    return Held(outputs + moments, records)


def examine(denoiser: Denoiser, config: FastCacheConfig, request: RequestSize) -> Finding:
    """Tell what a cache with these options holds for a request."""
    found = held(denoiser, config, request)
    text = f"{_megabytes(found.cached)} held for a request, granularity {config.granularity}"
    if found.learning:
        text += f"; {_megabytes(found.learning)} more while it learns from {config.learn} requests"
    budget = config.memory_budget or 0
    if 1 < budget < found.cached:
        return Finding("memory", text, "that is more than memory_budget: the output is stood in for instead")
    return Finding("memory", text)


def examine_saved(folder: Path, config: FastCacheConfig, request: RequestSize) -> Finding:
    """Tell the same of the pipeline in a folder. Raises UsageError where it holds none."""
    return examine(Denoiser.saved(folder), config, request)


def _blocks(denoiser: Denoiser, config: FastCacheConfig, request: RequestSize) -> int:
    """What is kept of blocks: of each segment and branch, references of each stream."""
    _, segments = partition(blocks_of(denoiser.model, denoiser.spec, {}), config)
    calibration = Calibration.cached(config.calibration) if config.calibration else None
    stand_ins = StandIns(config, segments, [segment.key for segment in segments], False, False, calibration)
    tokens = {HIDDEN: _tokens(denoiser, request), ENCODER: _text(denoiser, request)}
    kept = sum(
        tensors_kept(stand_in, stream) * tokens[stream]
        for segment, stand_in in zip(segments, stand_ins.by_segment, strict=True)
        for stream in _streams(segment)
    )
    size = kept_dtype(config.reference_dtype, request.dtype).itemsize
    return denoiser.branches * kept * _width(denoiser) * size


def _streams(segment: Segment) -> Iterator[str]:
    """The streams that come in and go out; the last joint block of some models returns no text."""
    yield HIDDEN
    last = segment.blocks[-1]
    takes_text = all(ENCODER in block.spec.returns for block in segment.blocks)
    if takes_text and not getattr(last.module, "context_pre_only", False):
        yield ENCODER


def _block(streams: str) -> BlockSpec:
    return BlockSpec(returns=(ENCODER, HIDDEN) if "another" in streams else (HIDDEN,))


def _width(denoiser: Denoiser) -> int:
    config = denoiser.model.config
    return config["num_attention_heads"] * config["attention_head_dim"]


def _text(denoiser: Denoiser, request: RequestSize) -> int:
    most = denoiser.defaults.get("max_sequence_length", 0)
    return request.text or most + CLIP_TOKENS * denoiser.pipeline.startswith("StableDiffusion3")


def _latents(denoiser: Denoiser, request: RequestSize) -> int:
    return (request.frames - 1) // denoiser.frames + 1


def _tokens(denoiser: Denoiser, request: RequestSize) -> int:
    """Number of image tokens."""
    *in_time, _, _ = _patch(denoiser)
    return _latents(denoiser, request) // (in_time or [1])[0] * _places(denoiser, request, denoiser.pixels)


def _positions(denoiser: Denoiser, request: RequestSize) -> int:
    """Number of positions of the latents, or of their tokens where the pipeline packs them."""
    if spec_named(type(denoiser.model).__name__).packed:
        return _tokens(denoiser, request)
    return _latents(denoiser, request) * _places(denoiser, request, denoiser.pixels // max(_patch(denoiser)))


def _places(denoiser: Denoiser, request: RequestSize, pixels: int) -> int:
    return (request.height // pixels) * (request.width // pixels)


def _patch(denoiser: Denoiser) -> Sequence[int]:
    patch = denoiser.model.config.get("patch_size") or 1
    return (denoiser.model.config.get("patch_size_t") or 1, patch, patch) if isinstance(patch, int) else patch


def _channels(denoiser: Denoiser) -> tuple[int, int]:
    """Channels of what the model is given and of what it returns."""
    config = denoiser.model.config
    return config["in_channels"], config.get("out_channels") or config["in_channels"]


def _handed(denoiser: Denoiser, request: RequestSize) -> int:
    """Numbers that the scheduler is given; a model may return a variance beside them."""
    return min(_channels(denoiser)) * _positions(denoiser, request)


def _returned(denoiser: Denoiser, request: RequestSize) -> int:
    return denoiser.branches * _channels(denoiser)[1] * _positions(denoiser, request)


def _recorded(denoiser: Denoiser, request: RequestSize) -> int:
    """Bytes of some rows in float32, which are recorded of each step's output, and of the latents before and behind."""
    positions = _positions(denoiser, request)
    rows = -(-positions // -(-positions // MOST_ROWS))
    return rows * min(_channels(denoiser)) * torch.float32.itemsize


def _megabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
