"""Positions of image tokens, which xDiT leaves behind for later requests."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.embeddings import PatchEmbed
from torch import nn


class Positions:
    """The positions that a model was loaded with.

    At another size xDiT works them out anew and keeps them, in other precision than those that were loaded. Back at
    the first size an image would differ, by rounding, from the one that a fresh process makes.
    """

    def __init__(self, transformer: nn.Module) -> None:
        self._loaded: list[tuple[PatchEmbed, dict[str, Any]]] = [
            (module, {name: getattr(module, name) for name in ("pos_embed", "height", "width")})
            for module in transformer.modules()
            if isinstance(module, PatchEmbed) and isinstance(module.pos_embed, torch.Tensor)
        ]

    def restore(self) -> None:
        """As if no request had been made."""
        for module, values in self._loaded:
            for name, value in values.items():
                setattr(module, name, value)
