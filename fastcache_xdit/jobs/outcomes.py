"""Turn the pixels of a batch into the files that its items become."""

from __future__ import annotations

import io
from collections.abc import Mapping

import torch

from fastcache_xdit.clips import NOT_FINITE, Clip, pictured
from fastcache_xdit.jobs.item import ItemOutcome


def outcomes(pixels: Mapping[int, torch.Tensor], fps: int) -> list[ItemOutcome]:
    """Encode what a pipeline made of items, by id: images [3, H, W] or clips [F, 3, H, W] in 0..1."""
    return [_outcome(id, values, fps) for id, values in pixels.items()]


def _outcome(id: int, values: torch.Tensor, fps: int) -> ItemOutcome:
    if not values.isfinite().all():
        return ItemOutcome(id, error=NOT_FINITE)
    picture = pictured(values, fps)
    if isinstance(picture, Clip):
        return ItemOutcome(id, picture.mp4(), suffix=".mp4")
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return ItemOutcome(id, file.getvalue())
