"""How close cached images are to uncached ones of the same seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from fastcache_xdit.clips import frames_of
from fastcache_xdit.shipped import prompt_accuracy

IDENTICAL_DB = 100.0  # PSNR of identical images is infinite, which JSON cannot hold


@dataclass(frozen=True)
class Likeness:
    """How close a cached image or clip is to the uncached one, as both were generated; an image has one frame.

    Attributes:
        psnr_db: of all frames as one picture.
        frames_psnr_db: of each frame.
        frames_ssim: of each frame.
    """

    psnr_db: float
    frames_psnr_db: list[float]
    frames_ssim: list[float]

    @property
    def ssim(self) -> float:
        """The mean over the frames."""
        return sum(self.frames_ssim) / len(self.frames_ssim)


def likeness(cached: Any, uncached: Any) -> Likeness:
    """Compare an image or clip with the uncached one."""
    frames = to_tensor(frames_of(cached)), to_tensor(frames_of(uncached))
    (whole,) = psnr_db(*(each.transpose(0, 1).flatten(1, 2)[None] for each in frames))
    return Likeness(whole, psnr_db(*frames), ssim(*frames))


def to_tensor(images: Sequence[Any]) -> torch.Tensor:
    """Stack PIL images of one size as [N, 3, H, W] float64 in 0..1."""
    pixels = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).double() / 255


def psnr_db(cached: torch.Tensor, uncached: torch.Tensor) -> list[float]:
    """Compute the peak signal-to-noise ratio of each image pair in dB, at most `IDENTICAL_DB`.

    Both are [N, 3, H, W] in 0..1.
    """
    ratios = peak_signal_noise_ratio(cached, uncached, data_range=1.0, reduction="none", dim=(1, 2, 3))
    return ratios.clamp(max=IDENTICAL_DB).tolist()


def ssim(cached: torch.Tensor, uncached: torch.Tensor) -> list[float]:
    """Compute the structural similarity of each image pair; both are [N, 3, H, W] in 0..1."""
    # one by one and in float32: ten to fifty times as fast as all of a video, or float64, and the same to 1e-6
    pairs = zip(cached.float().split(1), uncached.float().split(1), strict=True)
    values = [structural_similarity_index_measure(one, other, data_range=1.0, reduction="none") for one, other in pairs]
    return torch.cat([torch.atleast_1d(value) for value in values]).tolist()


def shapes_accuracy(images: Sequence[Any], prompts: Sequence[str]) -> float | None:
    """Measure the share of the prompts' attributes that images or clips of a shipped model show.

    A clip may also come as one image, its frames side by side. Prompts outside the models' little language cannot be
    checked and are left out; None where that leaves no prompt.
    """
    pixels = [np.hstack([np.asarray(frame.convert("RGB")) for frame in frames_of(image)]) for image in images]
    scores = [prompt_accuracy(each, prompt) for each, prompt in zip(pixels, prompts, strict=True)]
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if known else None


def mean_and_min(values: Sequence[float]) -> dict[str, float]:
    """Reduce a metric to the two figures that reports give of it."""
    return {"mean": sum(values) / len(values), "min": min(values)}
