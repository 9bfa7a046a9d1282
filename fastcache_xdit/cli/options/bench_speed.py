"""Options of `bench speed`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastcache_xdit.host.xdit.flags import DTYPE_NAMES
from fastcache_xdit.models.architectures import ARCHITECTURES


@dataclass(frozen=True, kw_only=True)
class SpeedOptions:
    """Options of `bench speed`; a size that is None is the model's own."""

    architecture: str
    num_inference_steps: int
    height: int | None
    width: int | None
    num_frames: int | None
    dtype: str | None
    tiny: bool
    compile: bool
    repetitions: int
    only: tuple[str, ...] | None
    output: str


def add_arguments(group: Any) -> None:
    """Add the command's options."""
    names = sorted(ARCHITECTURES)
    group.add_argument("--architecture", choices=names, default="flux.1-dev", help="default: %(default)s")
    group.add_argument("--num_inference_steps", type=int, default=20, help="default: %(default)s")
    for name in ("height", "width", "num_frames"):
        group.add_argument(f"--{name}", type=int, help="default: the model's own")
    group.add_argument("--dtype", choices=DTYPE_NAMES, help="default: bfloat16, float32 without accelerator")
    group.add_argument("--tiny", action="store_true", help="few layers and a small size, to try it without a GPU")
    group.add_argument("--compile", action="store_true", help="compile the transformer, by torch.compile")
    group.add_argument("--repetitions", type=int, default=3, help="of each timing; default: %(default)s")
    group.add_argument("--only", nargs="+", metavar="NAME", help="caches whose name has one of these in it")
    group.add_argument("--output", metavar="FOLDER", default="results/speed", help="default: %(default)s")
