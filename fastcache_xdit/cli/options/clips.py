"""How clips are written, for all commands that make them."""

from __future__ import annotations

from typing import Any

from fastcache_xdit.errors import UsageError

MOST_FPS = 240


def add_clips(group: Any) -> None:
    """Add the options of clips."""
    usual = "default: what the model is meant for, 16 for Wan"
    group.add_argument("--fps", type=int, metavar="NUMBER", help=f"frames of a clip in a second; {usual}")


def check_clips(fps: int | None) -> None:
    """Raise UsageError for a speed that no clip has."""
    if fps is not None and not 1 <= fps <= MOST_FPS:
        raise UsageError(f"fps={fps} is not possible", f"set a number from 1 to {MOST_FPS}")
