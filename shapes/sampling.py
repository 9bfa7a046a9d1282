"""Random scenes for training, and prompts that training never shows."""

from __future__ import annotations

import random
import zlib

from fastcache_xdit.errors import UsageError

from .shapes import BACKGROUNDS, COLOURS, IMAGE_SIZE, KINDS, RADIUS, RELATIONS, SIZES, Scene, Shape, caption

# Centre of the first object for each relation; the second one sits at the mirrored place.
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
    """Return the same scene with every object's centre and radius drawn anew."""
    shapes = tuple(
        Shape(s.colour, s.kind, s.size, _place(rng, scene.relation, i == 1), rng.uniform(*RADIUS[s.size]))
        for i, s in enumerate(scene.objects)
    )
    return Scene(shapes, scene.background, scene.relation)


def _sample_shape(rng: random.Random) -> Shape:
    return Shape(rng.choice(list(COLOURS)), rng.choice(KINDS), rng.choice(SIZES))


def sample_any_scene(rng: random.Random) -> Scene:
    """Draw a scene, held out or not."""
    two = rng.random() < _TWO_OBJECTS_SHARE
    shapes = tuple(_sample_shape(rng) for _ in range(2 if two else 1))
    scene = Scene(shapes, rng.choice(list(BACKGROUNDS)), rng.choice(RELATIONS) if two else None)
    return place(scene, rng)


def is_held_out(scene: Scene) -> bool:
    """Tell whether the scene is kept out of training: one caption in sixteen, chosen by a checksum of its text."""
    return zlib.crc32(caption(scene).encode()) % HELD_OUT_MODULUS == 0


def sample_scene(rng: random.Random, held_out: bool = False) -> Scene:
    """Draw a scene for training, or with `held_out` one whose caption training never shows."""
    while True:
        scene = sample_any_scene(rng)
        if is_held_out(scene) == held_out:
            return scene


def prompts(n: int, seed: int) -> list[str]:
    """Draw `n` different captions that take no part in training, the same for the same `seed`.

    Raises:
        UsageError: more than 500 are asked for.
    """
    if n > _MOST_PROMPTS:
        raise UsageError(f"{n} held-out prompts cannot be drawn", f"ask for at most {_MOST_PROMPTS}")
    rng = random.Random(seed)
    chosen: dict[str, None] = {}
    while len(chosen) < n:
        chosen[caption(sample_scene(rng, held_out=True))] = None
    return list(chosen)
