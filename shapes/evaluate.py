"""Generates images or videos for held-out prompts with a pipeline folder and measures their prompt accuracy."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from .checker import Score
from .recipe import Recipe

_BATCH = 16
_GRID_WIDTH, _GRID_ROWS = 1024, 8


def generate(folder: Path, captions: list[str], seed: int = 0, **overrides: float) -> list[np.ndarray]:
    """Images (uint8, (H, W, 3)) or videos (uint8, (F, H, W, 3)) for captions, with the folder's call defaults.

    Result i has seed ``seed`` + i, whatever the others are.
    """
    pipeline = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    options = {**json.loads((folder / "generation.json").read_text()), **overrides}
    results: list[np.ndarray] = []
    for start in range(0, len(captions), _BATCH):
        batch = captions[start : start + _BATCH]
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(batch))]
        # The first output is what the pipeline draws, under whatever name.
        drawn = pipeline(batch, generator=generators, output_type="np", **options)[0]
        results += list((drawn * 255).round().astype(np.uint8))
    return results


def by_attribute(scores: list[Score]) -> dict[str, float]:
    """Accuracy of each attribute over all images that have it, plus ``"all"``, the mean over images."""
    table: dict[str, list[bool]] = defaultdict(list)
    for score in scores:
        for name, right in score.attributes.items():
            table[name.split()[0]].append(right)
    result = {name: float(np.mean(values)) for name, values in table.items()}
    return {**result, "all": float(np.mean([score.accuracy for score in scores]))}


def save_grid(results: list[np.ndarray], path: Path) -> None:
    """Save images, or first, middle and last frame of videos, in eight rows; a row that is not full is left out."""
    tiles = [each if each.ndim == 3 else np.concatenate(each[:: len(each) // 2], 1) for each in results]
    columns = _GRID_WIDTH // tiles[0].shape[1]
    rows = [np.concatenate(tiles[i : i + columns], 1) for i in range(0, len(tiles), columns)]
    whole = [row for row in rows[:_GRID_ROWS] if row.shape == rows[0].shape]
    Image.fromarray(np.concatenate(whole)).save(path)


def evaluate(
    recipe: Recipe, folder: Path, count: int, seed: int, grid: Path | None = None, **overrides: float
) -> dict[str, float]:
    """Accuracy by attribute of ``count`` held-out prompts; optionally saves the images as a grid."""
    captions = recipe.prompts(count, seed)
    images = generate(folder, captions, seed, **overrides)
    if grid is not None:
        save_grid(images, grid)
    return by_attribute([recipe.check(image, text) for image, text in zip(images, captions, strict=True)])
