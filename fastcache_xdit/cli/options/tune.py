"""Options of `tune`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastcache_xdit.cli.options.pipeline import PipelineOptions, add_pipeline_arguments


@dataclass(frozen=True, kw_only=True)
class TuneOptions(PipelineOptions):
    """Options of `tune`."""

    calibration: str | None
    target: str | None
    steps: tuple[int, ...] | None
    evaluations: int
    refit_prompts: str | None
    polish: int
    start: str | None
    lead_blocks: int
    output: str | None


def add_arguments(group: Any) -> None:
    """Add the command's own options, beside xDiT's engine flags."""
    add_pipeline_arguments(group, batch_size=4)
    group.add_argument("--calibration", metavar="FILE.safetensors", help="from fastcache-xdit calibrate")
    group.add_argument("--target", metavar="KIND=NUMBER", help="speedup=2.5, psnr=34 or budget=0.4 (of block FLOPs)")
    group.add_argument(
        "--steps", type=int, nargs="+", help="numbers of steps to tune for; default: num_inference_steps"
    )
    group.add_argument("--evaluations", type=int, default=24, help="generations of all prompts per number of steps")
    group.add_argument("--refit_prompts", metavar="FILE", help="to fit found masks on once more; default: no such fits")
    group.add_argument("--polish", type=int, default=0, help="then train them on so many batches of those; default: 0")
    group.add_argument(
        "--start", metavar="FILE.yaml", help="a config of an earlier search, whose masks are tried first"
    )
    group.add_argument("--lead_blocks", type=int, default=0, help="always computed; default: 0")
    group.add_argument("--output", metavar="FILE.yaml", help="the config")
