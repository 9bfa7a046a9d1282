"""Scenes of one or two coloured shapes: captions from scenes, scenes from captions, and drawings.

The drawings are the training data of the image models, and the captions are their prompt language.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

IMAGE_SIZE = 128
KINDS = ("circle", "square", "triangle")
SIZES = ("normal", "small")
RELATIONS = ("left of", "right of", "above", "below")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 35, 35),
    "green": (40, 165, 60),
    "blue": (40, 80, 230),
    "yellow": (240, 220, 40),
    "orange": (245, 130, 20),
    "purple": (140, 50, 180),
    "cyan": (50, 210, 220),
    "pink": (255, 130, 190),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {"dark": (24, 24, 32), "light": (236, 236, 228)}

# Half extents in pixels. The two ranges are far apart so that "small" is never a matter of taste.
RADIUS = {"normal": (19.0, 22.0), "small": (10.0, 12.0)}

_OBJECT = rf"an? (?:(small) )?({'|'.join(COLOURS)}) ({'|'.join(KINDS)})"
_PROMPT = re.compile(
    rf"{_OBJECT}(?: ({'|'.join(RELATIONS)}) {_OBJECT})? on a ({'|'.join(BACKGROUNDS)}) background", re.IGNORECASE
)


@dataclass(frozen=True)
class Shape:
    """One object: what the caption says of it, and where it is drawn.

    `centre` is (x, y) and `radius` the half extent, both in pixels. They take no part in comparisons, since captions do
    not mention them.
    """

    colour: str
    kind: str
    size: str = "normal"
    centre: tuple[float, float] = field(default=(64.0, 64.0), compare=False)
    radius: float = field(default=20.0, compare=False)


@dataclass(frozen=True)
class Scene:
    """One object on a background, or two and the relation of the first to the second."""

    objects: tuple[Shape, ...]
    background: str
    relation: str | None = None

    def __post_init__(self) -> None:
        if len(self.objects) not in (1, 2) or (len(self.objects) == 2) != (self.relation is not None):
            raise ValueError("a scene has one object, or two objects and a relation")


def _noun(shape: Shape) -> str:
    words = [*(["small"] if shape.size == "small" else []), shape.colour, shape.kind]
    return ("an " if words[0][0] in "aeiou" else "a ") + " ".join(words)


def caption(scene: Scene) -> str:
    """Describe the scene in words: `"a red circle left of a small blue square on a dark background"`."""
    text = _noun(scene.objects[0])
    if scene.relation is not None:
        text += f" {scene.relation} {_noun(scene.objects[1])}"
    return f"{text} on a {scene.background} background"


def parse(prompt: str) -> Scene:
    """Read the scene that a caption describes, with every object at the default place.

    Raises:
        ValueError: the prompt is not of the form that `caption` writes.
    """
    match = _PROMPT.fullmatch(" ".join(prompt.split()).rstrip("."))
    if match is None:
        raise ValueError(
            f"not understood: {prompt!r}; expected 'a [small] COLOUR KIND [RELATION a [small] COLOUR KIND] on a "
            f"BACKGROUND background' with colours {', '.join(COLOURS)}, kinds {', '.join(KINDS)}, relations "
            f"{', '.join(RELATIONS)}, backgrounds {', '.join(BACKGROUNDS)}"
        )
    words = [word.lower() if word else word for word in match.groups()]
    shapes = [Shape(words[1], words[2], words[0] or "normal")]
    if words[3]:
        shapes.append(Shape(words[5], words[6], words[4] or "normal"))
    return Scene(tuple(shapes), words[7], words[3])


def _signed_distance(kind: torch.Tensor, dx: torch.Tensor, dy: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """Return the distance to the outline in pixels, positive inside; all arguments broadcast to [N, H, W]."""
    circle = r - torch.sqrt(dx * dx + dy * dy)
    square = 0.9 * r - torch.maximum(dx.abs(), dy.abs())
    # Upright isosceles triangle: apex (0, -r), base corners (+-r, r). The legs' unit normal is (2, -1) / sqrt(5).
    legs = (r + dy - 2 * dx.abs()) / 5**0.5
    triangle = torch.minimum(legs, r - dy)
    return torch.where(kind == 0, circle, torch.where(kind == 1, square, triangle))


def _column(values: list, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype).view(-1, 1, 1)


def _paint(images: torch.Tensor, rows: list[int], shapes: list[Shape]) -> None:
    axis = torch.arange(IMAGE_SIZE, dtype=torch.float32) + 0.5
    dx = axis.view(1, 1, -1) - _column([s.centre[0] for s in shapes])
    dy = axis.view(1, -1, 1) - _column([s.centre[1] for s in shapes])
    kind = _column([KINDS.index(s.kind) for s in shapes], torch.int64)
    distance = _signed_distance(kind, dx, dy, _column([s.radius for s in shapes]))
    coverage = (distance + 0.5).clamp(0, 1)[:, None]
    colour = torch.tensor([COLOURS[s.colour] for s in shapes], dtype=torch.float32).view(-1, 3, 1, 1)
    images[rows] = torch.lerp(images[rows], colour.expand(-1, -1, IMAGE_SIZE, IMAGE_SIZE), coverage)


def draw_batch(scenes: Sequence[Scene]) -> torch.Tensor:
    """Draw N scenes, anti-aliased: float32 [N, 3, 128, 128] in -1..1."""
    backgrounds = torch.tensor([BACKGROUNDS[s.background] for s in scenes], dtype=torch.float32)
    images = backgrounds.view(-1, 3, 1, 1).repeat(1, 1, IMAGE_SIZE, IMAGE_SIZE)
    for position in (0, 1):
        rows = [i for i, scene in enumerate(scenes) if len(scene.objects) > position]
        if rows:
            _paint(images, rows, [scenes[i].objects[position] for i in rows])
    return images / 127.5 - 1


def draw(scene: Scene) -> torch.Tensor:
    """Draw one scene: float32 [3, 128, 128] in -1..1."""
    return draw_batch([scene])[0]
