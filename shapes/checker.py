"""Find the shapes in an image, and measure how much of its prompt it shows."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np
from scipy import ndimage

from .shapes import BACKGROUNDS, COLOURS, KINDS, RADIUS, Scene, Shape, parse

# Pixels nearer to the background than this (Euclidean, 0..255 per channel) belong to it; palette colours are more
# than 100 away.
_FOREGROUND_DISTANCE = 50.0
# A small shape covers at least 190 pixels; specks far below that are noise, not objects.
_SMALLEST_AREA = 60
_MAX_COLOUR_DISTANCE = 75.0
# Share of its bounding box that an ideal shape covers.
_EXTENTS = {"circle": np.pi / 4, "square": 1.0, "triangle": 0.5}
_MAX_EXTENT_ERROR = 0.15
_SMALL_UP_TO = (RADIUS["small"][1] + RADIUS["normal"][0]) / 2
# A square of half extent r is drawn with half side 0.9 r.
_HALF_SIDE = {"circle": 1.0, "square": 0.9, "triangle": 1.0}
_MAX_BACKGROUND_DISTANCE = 60.0
_UNKNOWN = "?"


@dataclass(frozen=True)
class Score:
    """Which attributes of a prompt an image shows, by name (`"colour 1"`, `"relation"` ...)."""

    attributes: dict[str, bool]

    @property
    def accuracy(self) -> float:
        """Return the share of attributes that are right, in 0..1."""
        return sum(self.attributes.values()) / len(self.attributes)


def _nearest(colour: np.ndarray, palette: dict[str, tuple[int, int, int]], limit: float) -> str:
    distances = {name: float(np.linalg.norm(colour - np.array(value))) for name, value in palette.items()}
    name = min(distances, key=distances.__getitem__)
    return name if distances[name] <= limit else _UNKNOWN


def _border(image: np.ndarray) -> np.ndarray:
    edges = [image[:3], image[-3:], image[:, :3], image[:, -3:]]
    return np.concatenate([edge.reshape(-1, 3) for edge in edges])


def _describe(pixels: np.ndarray, mask: np.ndarray, offset: tuple[int, int], background: np.ndarray) -> Shape:
    """Describe an object from its bounding box: `pixels` [h, w, 3], `mask` [h, w], `offset` = (top, left)."""
    core = ndimage.binary_erosion(mask, iterations=2)
    colour = np.median(pixels[core if core.any() else mask], axis=0)
    # Edge pixels are mixtures: the outline runs half way between background and colour.
    toward = (pixels - background) @ (colour - background) / max(float(np.sum((colour - background) ** 2)), 1.0)
    inside = mask & (toward > 0.5)
    if not inside.any():
        inside = mask
    rows, columns = np.where(inside.any(1))[0], np.where(inside.any(0))[0]
    height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
    kind = _kind(inside.sum() / (height * width), height / width)
    radius = (height + width) / 4 / _HALF_SIDE.get(kind, 1.0)
    y, x = ndimage.center_of_mass(inside)
    size = "small" if radius < _SMALL_UP_TO else "normal"
    return Shape(_nearest(colour, COLOURS, _MAX_COLOUR_DISTANCE), kind, size, (offset[1] + x, offset[0] + y), radius)


def _kind(extent: float, aspect: float) -> str:
    kind = min(KINDS, key=lambda name: abs(_EXTENTS[name] - extent))
    if abs(_EXTENTS[kind] - extent) > _MAX_EXTENT_ERROR or not 0.75 < aspect < 1.33:
        return _UNKNOWN
    return kind


def find_shapes(image: np.ndarray) -> tuple[list[Shape], str]:
    """Find all objects in an image, largest first, and its background.

    Args:
        image: uint8 [H, W, 3].

    Returns:
        The objects, with `"?"` for an attribute that cannot be told; and `"dark"`, `"light"` or `"?"`.

    Raises:
        ValueError: the array is not uint8 [H, W, 3].
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"expected a uint8 image of shape (H, W, 3), got {image.dtype} {image.shape}")
    pixels = image.astype(np.float64)
    background = np.median(_border(pixels), axis=0)
    foreground = np.linalg.norm(pixels - background, axis=2) > _FOREGROUND_DISTANCE
    labels, _ = ndimage.label(foreground)
    areas, boxes = np.bincount(labels.ravel()), ndimage.find_objects(labels)
    shapes = []
    for label in sorted(range(1, len(areas)), key=lambda i: -areas[i]):
        if areas[label] < _SMALLEST_AREA:
            break
        box = boxes[label - 1]
        shapes.append(_describe(pixels[box], labels[box] == label, (box[0].start, box[1].start), background))
    return shapes, _nearest(background, BACKGROUNDS, _MAX_BACKGROUND_DISTANCE)


def _holds(relation: str, first: Shape, second: Shape) -> bool:
    dx, dy = second.centre[0] - first.centre[0], second.centre[1] - first.centre[1]
    gap = {"left of": dx, "right of": -dx, "above": dy, "below": -dy}[relation]
    return gap > 0 and gap > 0.5 * max(abs(dx), abs(dy))


def _compare(scene: Scene, shapes: tuple[Shape | None, ...]) -> dict[str, bool]:
    attributes = {}
    for number, (wanted, shape) in enumerate(zip(scene.objects, shapes, strict=True), start=1):
        for name in ("colour", "kind", "size"):
            attributes[f"{name} {number}"] = shape is not None and getattr(shape, name) == getattr(wanted, name)
    if scene.relation is not None:
        first, second = shapes
        attributes["relation"] = first is not None and second is not None and _holds(scene.relation, first, second)
    return attributes


def check(image: np.ndarray, prompt: str) -> Score:
    """Compare an image with its prompt: colour, kind and size of each object, their number, relation and background.

    Objects are matched with those of the prompt in the order that suits it best.

    Args:
        image: uint8 [H, W, 3].
        prompt: a caption that `shapes.parse` understands.

    Raises:
        ValueError: the prompt or the image is not understood.
    """
    scene = parse(prompt)
    shapes, background = find_shapes(image)
    wanted = len(scene.objects)
    candidates: list[Shape | None] = [*shapes[:wanted], *[None] * (wanted - len(shapes))]
    best = max((_compare(scene, order) for order in permutations(candidates)), key=lambda a: sum(a.values()))
    return Score({**best, "number": len(shapes) == wanted, "background": background == scene.background})
