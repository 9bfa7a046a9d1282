"""Generate images or videos for held-out prompts with a pipeline folder, and measure their prompt accuracy."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from .checker import Score
from .recipe import ModelRecipe

_BATCH = 16
_GRID_WIDTH, _GRID_ROWS = 1024, 8


def generate(folder: Path, captions: list[str], seed: int = 0, **overrides: float) -> list[np.ndarray]:
    """Generate images (uint8 [H, W, 3]) or videos (uint8 [F, H, W, 3]) for captions.

    The folder's `generation.json` holds the arguments of the call; `overrides` win over it. Result i is made from seed
    `seed` + i, whatever batch it falls into.
    """
    pipeline = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    options = {**json.loads((folder / "generation.json").read_text()), **overrides}
    results: list[np.ndarray] = []
    for start in range(0, len(captions), _BATCH):
        batch = captions[start : start + _BATCH]
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(batch))]
        # The first output holds the pictures, whatever name the pipeline gives it.
        drawn = pipeline(batch, generator=generators, output_type="np", **options)[0]
        results += list((drawn * 255).round().astype(np.uint8))
    return results


def by_attribute(scores: list[Score]) -> dict[str, float]:
    """Average each attribute over all images that have it; `"all"` is the mean accuracy over images."""
    table: dict[str, list[bool]] = defaultdict(list)
    for score in scores:
        for name, right in score.attributes.items():
            table[name.split()[0]].append(right)
    result = {name: float(np.mean(values)) for name, values in table.items()}
    return {**result, "all": float(np.mean([score.accuracy for score in scores]))}


def save_grid(results: list[np.ndarray], path: Path) -> None:
    """Save a grid of up to eight full rows: images, or first, middle and last frames of videos."""
    tiles = [result if result.ndim == 3 else np.concatenate(result[:: len(result) // 2], 1) for result in results]
    columns = _GRID_WIDTH // tiles[0].shape[1]
    rows = [np.concatenate(tiles[i : i + columns], 1) for i in range(0, len(tiles), columns)]
    full_rows = [row for row in rows[:_GRID_ROWS] if row.shape == rows[0].shape]
    Image.fromarray(np.concatenate(full_rows)).save(path)


def evaluate(
    recipe: ModelRecipe, folder: Path, count: int, seed: int, grid: Path | None = None, **overrides: float
) -> dict[str, float]:
    """Measure the accuracy by attribute on `count` held-out prompts; with `grid`, also save the pictures there."""
    captions = recipe.prompts(count, seed)
    images = generate(folder, captions, seed, **overrides)
    if grid is not None:
        save_grid(images, grid)
    return by_attribute([recipe.check(image, text) for image, text in zip(images, captions, strict=True)])
