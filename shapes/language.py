"""The language of prompts, for images and videos alike."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np

from .checker import Score, check
from .sampling import place
from .shapes import Scene, parse
from .video_checker import check_clip
from .videos import FRAMES, frames, parse_clip, place_clip


def check_picture(picture: np.ndarray, prompt: str) -> Score | None:
    """Compare a picture with its prompt; return None where the prompt is not in the models' language.

    Args:
        picture: uint8 [H, W, 3]; a video's frames side by side.
        prompt: of any model.

    Raises:
        ValueError: the picture cannot be an image or a video of the prompt.
    """
    if _understood(prompt, parse_clip):
        return check_clip(np.stack(np.split(picture, FRAMES, axis=1)), prompt)
    return check(picture, prompt) if _understood(prompt, parse) else None


def drawings(prompt: str, count: int, rng: random.Random) -> list[Scene]:
    """Make `count` scenes that the prompt describes, their objects placed at random; of clips, every frame.

    Raises:
        ValueError: the prompt is not understood.
    """
    if _understood(prompt, parse_clip):
        return [frame for _ in range(count) for frame in frames(place_clip(parse_clip(prompt), rng))]
    return [place(parse(prompt), rng) for _ in range(count)]


def _understood(prompt: str, parser: Callable[[str], object]) -> bool:
    try:
        parser(prompt)
    except ValueError:
        return False
    return True
