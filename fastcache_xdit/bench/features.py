"""Frechet distances on features of the shapes classifier: like FID in form, but on our own features, and named so."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import torch

from fastcache_xdit.shipped import classifier_features, draw

DRAWINGS = 16  # of each prompt; of videos, so many with all their frames


@torch.no_grad()
def features(images: torch.Tensor) -> np.ndarray:
    """[N, 3, 128, 128] in 0..1 -> [N, F] float64."""
    return classifier_features(images.float()).double().numpy()


def drawn_features(prompts: Sequence[str]) -> np.ndarray:
    """Features of true drawings of the prompts, which training and the classifier have both learned from.

    Raises:
        UsageError: a prompt outside the shapes' little language.
    """
    rng = random.Random(0)
    drawn = (draw(prompt, DRAWINGS, rng) for prompt in prompts)
    return np.concatenate([features((each + 1) / 2) for each in drawn])


def frechet(first: np.ndarray, second: np.ndarray) -> float:
    """Distance between the normal distributions of sets of features, [N, F] and [M, F]; one alone has no spread."""
    spread = [np.cov(each, rowvar=False, ddof=min(1, len(each) - 1)) for each in (first, second)]
    # The trace of the product's root, which exists for singular covariances (fewer images than features) as well.
    mixed = np.sqrt(np.linalg.eigvals(spread[0] @ spread[1]).real.clip(min=0)).sum()
    apart = np.square(first.mean(0) - second.mean(0)).sum()
    return float(apart + np.trace(spread[0] + spread[1]) - 2 * mixed)


def temporal_frechet(predictions: Sequence[torch.Tensor]) -> float:
    """t-Frechet: mean distance between predictions of neighbouring steps.

    Args:
        predictions: the clean images that each step predicts, [N, 3, 128, 128] in 0..1, as neighbouring pairs
            (first, second, first, second, ...).
    """
    known = [features(each) for each in predictions]
    return float(np.mean([frechet(*pair) for pair in zip(known[::2], known[1::2], strict=True)]))
