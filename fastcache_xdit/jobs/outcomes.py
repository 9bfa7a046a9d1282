"""Turn the pixels of a batch into the files that its items become."""

from __future__ import annotations

import io
from collections.abc import Mapping

import torch
from PIL import Image

from fastcache_xdit.clips import Clip
from fastcache_xdit.jobs.item import ItemOutcome

NOT_FINITE = "the image is not finite (NaN or infinite latents); lower guidance, or use another dtype"


def outcomes(pixels: Mapping[int, torch.Tensor], fps: int) -> list[ItemOutcome]:
    """Encode what a pipeline made of items, by id: images [3, H, W] or clips [F, 3, H, W] in 0..1."""
    return [_outcome(id, values, fps) for id, values in pixels.items()]


def _outcome(id: int, values: torch.Tensor, fps: int) -> ItemOutcome:
    if not values.isfinite().all():
        return ItemOutcome(id, error=NOT_FINITE)
    if values.ndim == 4:
        return ItemOutcome(id, Clip(tuple(map(_image, values)), fps).mp4(), suffix=".mp4")
    file = io.BytesIO()
    _image(values).save(file, format="PNG")
    return ItemOutcome(id, file.getvalue())


def _image(values: torch.Tensor) -> Image.Image:
    """Round [3, H, W] as diffusers does."""
    return Image.fromarray((values.float().permute(1, 2, 0).cpu().numpy() * 255).round().astype("uint8"))
