"""Restore the positions of image tokens, which xDiT alters for all later requests."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.embeddings import PatchEmbed
from torch import nn


class Positions:
    """The positions that a model was loaded with.

    At another image size xDiT computes them anew and keeps them, in another precision than the loaded ones. Back at
    the first size an image would then differ, by rounding, from one that a fresh process makes.
    """

    def __init__(self, transformer: nn.Module) -> None:
        self._loaded: list[tuple[PatchEmbed, dict[str, Any]]] = [
            (module, {name: getattr(module, name) for name in ("pos_embed", "height", "width")})
            for module in transformer.modules()
            if isinstance(module, PatchEmbed) and isinstance(module.pos_embed, torch.Tensor)
        ]

    def restore(self) -> None:
        """Put the loaded positions back, as if no request had been made."""
        for module, values in self._loaded:
            for name, value in values.items():
                setattr(module, name, value)
