"""Random scenes without end for training, and prompts that training never shows."""

from __future__ import annotations

import random
import zlib

from .shapes import BACKGROUNDS, COLOURS, IMAGE_SIZE, KINDS, RADIUS, RELATIONS, SIZES, Scene, Shape, caption

# Centre of the first object for each relation; the second object sits at the mirrored place.
_FIRST_CENTRE = {"left of": (32, 64), "right of": (96, 64), "above": (64, 32), "below": (64, 96)}
_JITTER_ALONG, _JITTER_ACROSS, _JITTER_SINGLE = 4.0, 6.0, 8.0
_TWO_OBJECTS_SHARE = 0.85
HELD_OUT_MODULUS = 16
# Well below the number of held-out captions, so that drawing different ones is quick.
_MOST_PROMPTS = 500


def _place(rng: random.Random, relation: str | None, second: bool) -> tuple[float, float]:
    if relation is None:
        return 64 + rng.uniform(-1, 1) * _JITTER_SINGLE, 64 + rng.uniform(-1, 1) * _JITTER_SINGLE
    x, y = _FIRST_CENTRE[relation]
    if second:
        x, y = IMAGE_SIZE - x, IMAGE_SIZE - y
    horizontal = relation in ("left of", "right of")
    jitter = (_JITTER_ALONG, _JITTER_ACROSS) if horizontal else (_JITTER_ACROSS, _JITTER_ALONG)
    return x + rng.uniform(-1, 1) * jitter[0], y + rng.uniform(-1, 1) * jitter[1]


def place(scene: Scene, rng: random.Random) -> Scene:
    """The same scene with every object's centre and radius drawn anew from ``rng``."""
    shapes = tuple(
        Shape(s.colour, s.kind, s.size, _place(rng, scene.relation, i == 1), rng.uniform(*RADIUS[s.size]))
        for i, s in enumerate(scene.objects)
    )
    return Scene(shapes, scene.background, scene.relation)


def _sample_shape(rng: random.Random) -> Shape:
    return Shape(rng.choice(list(COLOURS)), rng.choice(KINDS), rng.choice(SIZES))


def sample_any_scene(rng: random.Random) -> Scene:
    """A random scene, held out or not."""
    two = rng.random() < _TWO_OBJECTS_SHARE
    shapes = tuple(_sample_shape(rng) for _ in range(2 if two else 1))
    scene = Scene(shapes, rng.choice(list(BACKGROUNDS)), rng.choice(RELATIONS) if two else None)
    return place(scene, rng)


def is_held_out(scene: Scene) -> bool:
    """Whether the scene's caption (one in sixteen, chosen by a checksum of its text) is kept out of training."""
    return zlib.crc32(caption(scene).encode()) % HELD_OUT_MODULUS == 0


def sample_scene(rng: random.Random, held_out: bool = False) -> Scene:
    """A random training scene, or with ``held_out`` a scene whose caption training never shows."""
    while True:
        scene = sample_any_scene(rng)
        if is_held_out(scene) == held_out:
            return scene


def prompts(n: int, seed: int) -> list[str]:
    """``n`` different captions that take no part in training, the same for the same ``seed``.

    Raises:
        ValueError: more than 500 are asked for.
    """
    if n > _MOST_PROMPTS:
        raise ValueError(f"at most {_MOST_PROMPTS} held-out prompts can be drawn, not {n}")
    rng = random.Random(seed)
    chosen: dict[str, None] = {}
    while len(chosen) < n:
        chosen[caption(sample_scene(rng, held_out=True))] = None
    return list(chosen)
