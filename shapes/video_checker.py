"""Find the moving shape in a video, and measure how much of its prompt the video shows."""

from __future__ import annotations

import numpy as np

from .checker import Score, find_shapes
from .shapes import Shape
from .videos import MOTIONS, Clip, parse_clip

# Videos are drawn with a path of 40 pixels at least.
_SHORTEST_PATH = 20.0
_MOST_WRONG_FRAMES = 1


def _frame_attributes(clip: Clip, shapes: list[Shape], background: str) -> dict[str, bool]:
    names = ("colour", "kind", "size")
    attributes = {name: bool(shapes) and getattr(shapes[0], name) == getattr(clip.shape, name) for name in names}
    return {**attributes, "number": len(shapes) == 1, "background": background == clip.background}


def _moves(motion: str, first: list[Shape], last: list[Shape]) -> bool:
    if not first or not last:
        return False
    path = np.subtract(last[0].centre, first[0].centre)
    along = float(path @ MOTIONS[motion])
    return along >= _SHORTEST_PATH and along > 2 * float(np.abs(path).min())


def check_clip(video: np.ndarray, prompt: str) -> Score:
    """Compare a video with its prompt: colour, kind and size of the object, number of objects, background and motion.

    In each frame the largest object counts. One frame may be wrong in any attribute but the motion, which goes from the
    object's centre in the first frame to that in the last.

    Args:
        video: uint8 [F, H, W, 3].
        prompt: a caption that `videos.parse_clip` understands.

    Raises:
        ValueError: the prompt or the video is not understood.
    """
    clip = parse_clip(prompt)
    seen = [find_shapes(frame) for frame in video]
    frames = [_frame_attributes(clip, shapes, background) for shapes, background in seen]
    wrong = {name: sum(not frame[name] for frame in frames) for name in frames[0]}
    motion = _moves(clip.motion, seen[0][0], seen[-1][0])
    return Score({**{name: count <= _MOST_WRONG_FRAMES for name, count in wrong.items()}, "motion": motion})
