"""Options of `calibrate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastcache_xdit.cli.options.pipeline import PipelineOptions, add_pipeline_arguments


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions(PipelineOptions):
    """Options of `calibrate`."""

    output: str | None
    lead_blocks: tuple[int, ...]
    granularity: str
    groups: int
    maps: bool
    stages: tuple[int, ...]


def add_arguments(group: Any) -> None:
    """Add the command's own options, beside xDiT's engine flags."""
    add_pipeline_arguments(group, batch_size=4)
    group.add_argument("--output", metavar="FILE.safetensors", help="the calibration; an interrupted one is continued")
    group.add_argument("--lead_blocks", type=int, nargs="+", default=[0, 1], help="to serve; default: 0 1")
    group.add_argument(
        "--granularity", choices=["step", "group", "block"], default="step", help="to serve beside step; default: step"
    )
    group.add_argument("--groups", type=int, default=4, help="of --granularity group; default: 4")
    group.add_argument("--maps", action="store_true", help="also fit matrices, for stand_in affine with an affine_rank")
    group.add_argument(
        "--stages",
        type=int,
        nargs="+",
        default=[],
        help="PipeFusion degrees to serve where each stage skips for itself",
    )
