"""Compute Frechet distances on features of the shapes classifier: FID's formula on other features, so no FID."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import torch

from fastcache_xdit.shipped import classifier_features, draw

DRAWINGS = 16  # of each prompt; of a video, each drawing has all its frames


@torch.no_grad()
def features(images: torch.Tensor) -> np.ndarray:
    """Return features [N, F], float64, of pictures [N, 3, 128, 128] in 0..1."""
    return classifier_features(images.float()).double().numpy()


def drawn_features(prompts: Sequence[str]) -> np.ndarray:
    """Return features [N, F] of drawings of the prompts, made as the models' training data was.

    Raises:
        ValueError: a prompt is not in the language of the shapes.
    """
    rng = random.Random(0)
    drawn = (draw(prompt, DRAWINGS, rng) for prompt in prompts)
    return np.concatenate([features((pictures + 1) / 2) for pictures in drawn])


def frechet(first: np.ndarray, second: np.ndarray) -> float:
    """Return the Frechet distance between two sets of features, [N, F] and [M, F], taken as normal distributions.

    A set of one has no spread.
    """
    spread = [np.cov(values, rowvar=False, ddof=min(1, len(values) - 1)) for values in (first, second)]
    # The trace of the product's root, which exists for singular covariances (fewer images than features) as well.
    mixed = np.sqrt(np.linalg.eigvals(spread[0] @ spread[1]).real.clip(min=0)).sum()
    apart = np.square(first.mean(0) - second.mean(0)).sum()
    return float(apart + np.trace(spread[0] + spread[1]) - 2 * mixed)


def temporal_frechet(predictions: Sequence[torch.Tensor]) -> float:
    """Return the t-Frechet distance: the mean distance between predictions of neighbouring steps.

    Args:
        predictions: the clean images that steps predict, each [N, 3, 128, 128] in 0..1, in pairs of neighbouring
            steps: first, second, first, second, ...
    """
    predicted = [features(images) for images in predictions]
    return float(np.mean([frechet(*pair) for pair in zip(predicted[::2], predicted[1::2], strict=True)]))
