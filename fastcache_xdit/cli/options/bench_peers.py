"""Options of `bench peers`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastcache_xdit.cli.options.pipeline import PipelineOptions, add_pipeline_arguments

COUNT, QUICK_COUNT = 32, 8


@dataclass(frozen=True, kw_only=True)
class PeersOptions(PipelineOptions):
    """Options of `bench peers`."""

    count: int | None
    repetitions: int
    configs: tuple[str, ...]
    only: tuple[str, ...] | None
    settings: tuple[str, ...] | None
    quick: bool
    output: str


def add_arguments(group: Any) -> None:
    """Add the command's own options, beside xDiT's engine flags."""
    add_pipeline_arguments(group, batch_size=8)
    usual = f"default: {COUNT}, with --quick {QUICK_COUNT}"
    group.add_argument("--count", type=int, help=f"prompts, held out from calibration; {usual}")
    group.add_argument("--repetitions", type=int, default=3, help="of each timing; default: %(default)s")
    group.add_argument("--configs", nargs="+", default=[], metavar="FILE.yaml", help="FastCache configs of this model")
    group.add_argument("--only", nargs="+", metavar="NAME", help="caches whose name has one of these in it")
    group.add_argument("--settings", nargs="+", metavar="SETTING", help="settings that have one of these in them")
    group.add_argument(
        "--quick", action="store_true", help=f"{QUICK_COUNT} prompts, and every third setting of each other cache"
    )
    group.add_argument("--output", metavar="FOLDER", default="results/peers", help="default: %(default)s")
