"""Options of `doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcache_xdit.host.xdit.flags import DTYPE_NAMES
from fastcache_xdit.shipped import SHIPPED, in_clone


@dataclass(frozen=True)
class DoctorOptions:
    """Options of `doctor`."""

    model: str | None
    calibration: tuple[Path, ...] | None
    json: bool
    height: int | None
    width: int | None
    num_frames: int
    num_inference_steps: int | None
    dtype: str
    cache_config: str | None


def add_arguments(parser: Any) -> None:
    """Add the command's options."""
    usual = SHIPPED[0] if in_clone() else None
    parser.add_argument("--model", default=usual, help="folder, hub id or shipped model; default: %(default)s")
    parser.add_argument(
        "--calibration", type=Path, nargs="*", metavar="FILE", help="of this model; default: those shipped with it"
    )
    memory = parser.add_argument_group("memory", "what the cache will hold for a request of this size")
    memory.add_argument("--height", type=int, help="in pixels")
    memory.add_argument("--width", type=int, help="in pixels")
    memory.add_argument("--num_frames", type=int, default=1, help="of a clip")
    memory.add_argument("--num_inference_steps", type=int, help="default: the pipeline's own")
    memory.add_argument("--dtype", choices=DTYPE_NAMES, default="bfloat16", help="default: %(default)s")
    memory.add_argument("--cache_config", metavar="CONFIG", help="options of the cache; default: its own")
    parser.add_argument("--json", action="store_true", help="findings as one JSON object")
