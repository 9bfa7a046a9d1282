"""A small classifier of shapes images, whose features tell how alike two sets of images are in what they show.

Frechet distances on its features are named after it. They are not FID, which uses features of Inception.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from .shapes import COLOURS, KINDS, RELATIONS, SIZES, Scene

WEIGHTS = Path(__file__).parent / "models" / "shapes-classifier" / "model.safetensors"
FEATURES = 32
_PAIRS = tuple(product(COLOURS, KINDS))
_WIDTHS = (16, 32, 48, 64, 64)


def labels(scene: Scene) -> list[float]:
    """List what the scene shows, as 0 or 1: each colour with each kind, each size, two objects, each relation, dark."""
    pairs = {(shape.colour, shape.kind) for shape in scene.objects}
    sizes = {shape.size for shape in scene.objects}
    shown = [
        *(pair in pairs for pair in _PAIRS),
        *(size in sizes for size in SIZES),
        len(scene.objects) == 2,
        *(relation == scene.relation for relation in RELATIONS),
        scene.background == "dark",
    ]
    return [float(value) for value in shown]


class Classifier(nn.Module):
    """A convolutional network that gives the logits of `labels`."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((3, *_WIDTHS), _WIDTHS, strict=False):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
        self.trunk = nn.Sequential(*layers, nn.Flatten(), nn.Linear(_WIDTHS[-1] * 16, FEATURES), nn.SiLU())
        self.head = nn.Linear(FEATURES, len(_PAIRS) + len(SIZES) + len(RELATIONS) + 2)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return what the logits are computed from, [N, FEATURES], for images [N, 3, 128, 128] in 0..1."""
        return self.trunk(images * 2 - 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [N, L] for images [N, 3, 128, 128] in 0..1."""
        return self.head(self.features(images))


@lru_cache(maxsize=1)
def shipped_classifier() -> Classifier:
    """Load the trained classifier once, in float32."""
    model = Classifier().eval()
    model.load_state_dict({name: weight.float() for name, weight in load_file(WEIGHTS).items()})
    return model
