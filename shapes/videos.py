"""Clips of one shape that moves over a still background: captions, clips from captions, and drawings."""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product

import torch

from .sampling import HELD_OUT_MODULUS
from .shapes import BACKGROUNDS, COLOURS, IMAGE_SIZE, KINDS, RADIUS, SIZES, Scene, Shape, caption, draw_batch, parse

FRAMES = 9
# Unit vectors (x, y); y points down.
MOTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
_MOVING = re.compile(rf" moving ({'|'.join(MOTIONS)})(?= on a )", re.IGNORECASE)
# In pixels: the way from the first frame to the last, and how far its middle may be from that of the picture.
_TRAVEL, _JITTER = (40.0, 56.0), 8.0


@dataclass(frozen=True)
class Clip:
    """One object that moves over a background.

    `shape` is where the object is in the middle of the clip, and `travel` its way from the first frame to the last, in
    pixels. Neither takes part in comparisons, since captions do not mention them.
    """

    shape: Shape
    motion: str
    background: str
    travel: float = field(default=48.0, compare=False)


def clip_caption(clip: Clip) -> str:
    """Describe the clip in words: `"a small red circle moving left on a dark background"`."""
    still = caption(Scene((clip.shape,), clip.background))
    return still.replace(" on a ", f" moving {clip.motion} on a ")


def parse_clip(prompt: str) -> Clip:
    """Read the clip that a caption describes, with the object at the default place.

    Raises:
        ValueError: the prompt is not of the form that `clip_caption` writes.
    """
    words = " ".join(prompt.split())
    moving = _MOVING.search(words)
    scene = parse(_MOVING.sub("", words)) if moving else None
    if moving is None or scene is None or scene.relation is not None:
        raise ValueError(
            f"not understood: {prompt!r}; expected 'a [small] COLOUR KIND moving DIRECTION on a BACKGROUND background' "
            f"with directions {', '.join(MOTIONS)}"
        )
    return Clip(scene.objects[0], moving[1].lower(), scene.background)


def frames(clip: Clip) -> list[Scene]:
    """Return the clip's nine frames, evenly spaced along its path."""
    (dx, dy), (x, y) = MOTIONS[clip.motion], clip.shape.centre
    steps = [clip.travel * (i / (FRAMES - 1) - 0.5) for i in range(FRAMES)]
    kind = (clip.shape.colour, clip.shape.kind, clip.shape.size)
    return [Scene((Shape(*kind, (x + dx * s, y + dy * s), clip.shape.radius),), clip.background) for s in steps]


def draw_clips(clips: Sequence[Clip]) -> torch.Tensor:
    """Draw N clips, anti-aliased: float32 [N, 3, 9, 128, 128] in -1..1."""
    images = draw_batch([frame for clip in clips for frame in frames(clip)])
    return images.unflatten(0, (len(clips), FRAMES)).transpose(1, 2)


def place_clip(clip: Clip, rng: random.Random) -> Clip:
    """Return the same clip with its object's path and radius drawn anew."""
    centre = (IMAGE_SIZE / 2 + rng.uniform(-1, 1) * _JITTER, IMAGE_SIZE / 2 + rng.uniform(-1, 1) * _JITTER)
    still = clip.shape
    shape = Shape(still.colour, still.kind, still.size, centre, rng.uniform(*RADIUS[still.size]))
    return Clip(shape, clip.motion, clip.background, rng.uniform(*_TRAVEL))


def _all_clips(held_out: bool) -> list[Clip]:
    every = [
        Clip(Shape(colour, kind, size), motion, background)
        for colour, kind, size, motion, background in product(COLOURS, KINDS, SIZES, MOTIONS, BACKGROUNDS)
    ]
    return [clip for clip in every if is_held_out_clip(clip) == held_out]


def is_held_out_clip(clip: Clip) -> bool:
    """Tell whether the clip is kept out of training: one caption in sixteen, chosen by a checksum of its text."""
    return zlib.crc32(clip_caption(clip).encode()) % HELD_OUT_MODULUS == 0


_TRAINING, _HELD_OUT = _all_clips(False), _all_clips(True)


def sample_any_clip(rng: random.Random) -> Clip:
    """Draw a clip, held out or not."""
    return place_clip(rng.choice(_TRAINING + _HELD_OUT), rng)


def sample_clip(rng: random.Random) -> Clip:
    """Draw a clip for training."""
    return place_clip(rng.choice(_TRAINING), rng)


def clip_prompts(n: int, seed: int) -> list[str]:
    """Draw `n` captions that take no part in training, the same for the same `seed`.

    There are only 22, since a clip has one object: all of them come before any comes again.
    """
    rng = random.Random(seed)
    chosen: list[Clip] = []
    while len(chosen) < n:
        chosen += rng.sample(_HELD_OUT, len(_HELD_OUT))
    return [clip_caption(clip) for clip in chosen[:n]]
