"""Score pictures: likeness to the uncached ones, and how well they show what prompts ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image

from fastcache_xdit.bench.features import drawn_features, features, frechet, temporal_frechet
from fastcache_xdit.bench.peers.sample import Sample
from fastcache_xdit.evaluate.quality import psnr_db, shapes_accuracy, ssim
from fastcache_xdit.host.xdit.engine import Batch
from fastcache_xdit.shipped import IMAGE_SIZE

PLACES = (0.5,)  # along the trajectory, where neighbouring predictions are compared: each costs two decodings


@dataclass(frozen=True)
class Scores:
    """Figures of one setting, or of the uncached pictures themselves; None where the model has no such figure.

    Attributes:
        psnr_db, psnr_db_p5, psnr_db_min, ssim: against the uncached pictures, picture by picture; means, and of
            PSNR the 5th percentile and the least.
        latent_error: |cached - uncached| / |uncached| of the final latents, the mean over prompts.
        prompt_accuracy: share of the prompts' attributes that the checker finds.
        classifier_frechet: distance to drawings of the same prompts.
        classifier_t_frechet: distance between predictions of neighbouring steps, of the first batch.
    """

    psnr_db: float
    psnr_db_p5: float
    psnr_db_min: float
    ssim: float
    latent_error: float | None
    prompt_accuracy: float | None
    classifier_frechet: float | None
    classifier_t_frechet: float | None


def score(pipe: Any, batches: Sequence[Batch], sample: Sample, truth: Sample) -> Scores:
    """Score a sample against the uncached one."""
    prompts = tuple(request.prompt for batch in batches for request in batch)
    psnr, likeness = psnr_db(sample.pictures, truth.pictures), ssim(sample.pictures, truth.pictures)
    drawn = _drawn(prompts) if sample.pictures.shape[-2:] == (IMAGE_SIZE, IMAGE_SIZE) else None
    return Scores(
        psnr_db=sum(psnr) / len(psnr),
        psnr_db_p5=float(np.percentile(psnr, 5)),
        psnr_db_min=min(psnr),
        ssim=sum(likeness) / len(likeness),
        latent_error=_latent_error(sample.latents, truth.latents),
        prompt_accuracy=shapes_accuracy(as_images(_joined_frames(prompts, sample.pictures)), prompts),
        classifier_frechet=None if drawn is None else frechet(features(sample.pictures), drawn),
        classifier_t_frechet=None if drawn is None else _temporal(pipe, sample.tape.clean, sample.latents),
    )


def as_images(pictures: torch.Tensor) -> list[Image.Image]:
    """Return [N, 3, H, W] in 0..1 as PIL images."""
    values = (pictures * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(picture) for picture in values]


def _joined_frames(prompts: Sequence[str], pictures: torch.Tensor) -> torch.Tensor:
    """Bring [N T, 3, H, W] to [N, 3, H, T W]: one picture for each prompt, the frames of videos side by side."""
    return pictures.unflatten(0, (len(prompts), -1)).movedim(1, -2).flatten(-2)


def _latent_error(latents: torch.Tensor | None, truth: torch.Tensor | None) -> float | None:
    if latents is None or truth is None or latents.shape != truth.shape:
        return None
    return ((latents - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)).mean().item()


@lru_cache(maxsize=1)
def _drawn(prompts: tuple[str, ...]) -> np.ndarray | None:
    """Return the classifier's features of drawings; None for prompts of which it knows nothing, and without it."""
    try:
        return drawn_features(prompts)
    except ValueError:
        return None


def _temporal(pipe: Any, clean: Sequence[torch.Tensor], latents: torch.Tensor | None) -> float | None:
    """Return the t-Frechet distance, None where nothing was taped."""
    if latents is None or not clean:
        return None
    firsts = [min(int(place * len(clean)), len(clean) - 2) for place in PLACES]
    return temporal_frechet(
        [_decoded(pipe, clean[step], latents.shape) for first in firsts for step in (first, first + 1)]
    )


@torch.no_grad()
def _decoded(pipe: Any, latents: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Decode latents in the scheduler's form to pictures [N, 3, H, W] in 0..1, a video's frames one after the other.

    `shape` is the form that the decoder takes.
    """
    drawn = pipe.vae.decode(_unscaled(pipe.vae.config, _unpacked(pipe, latents, shape))).sample.float().cpu()
    pictures = drawn if drawn.ndim == 4 else drawn.transpose(1, 2).flatten(0, 1)
    return (pictures / 2 + 0.5).clamp(0, 1)


def _unpacked(pipe: Any, latents: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    if latents.ndim == len(shape):
        return latents
    scale = pipe.vae_scale_factor
    return pipe._unpack_latents(latents, shape[-2] * scale, shape[-1] * scale, scale)


def _unscaled(config: Any, latents: torch.Tensor) -> torch.Tensor:
    """Bring latents back to what the autoencoder gave, as pipelines do: one factor and shift, or each channel's own."""
    if getattr(config, "latents_mean", None):
        mean, std = (
            latents.new_tensor(values).view(-1, 1, 1, 1) for values in (config.latents_mean, config.latents_std)
        )
        return latents * std + mean
    return latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)
