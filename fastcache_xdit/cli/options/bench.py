"""Options of the benchmarks of FastCache alone."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from fastcache_xdit.bench.choices import BUDGETS, SETTINGS
from fastcache_xdit.cli.options.pipeline import PipelineOptions, add_pipeline_arguments


@dataclass(frozen=True, kw_only=True)
class BenchOptions(PipelineOptions):
    """Options of `bench approximations`, `significance`, `tokens`, `costs`, `overhead` and `batch`."""

    steps: tuple[int, ...]
    count: int
    tolerance: float
    settings: tuple[str, ...]
    budgets: tuple[float, ...]
    repeats: int
    maps: str | None
    profile: bool
    output: str


def add_arguments(group: Any) -> None:
    """Add the command's own options, beside xDiT's engine flags."""
    add_pipeline_arguments(group, batch_size=8)
    group.add_argument("--steps", type=int, nargs="+", default=[20, 30, 50], help="default: 20 30 50")
    group.add_argument("--count", type=int, default=32, help="held-out prompts; default: %(default)s")
    group.add_argument("--tolerance", type=float, default=0.005, help="of the significance test; default: %(default)s")
    group.add_argument(
        "--settings", nargs="+", choices=SETTINGS, default=SETTINGS, help="of bench tokens; default: both"
    )
    group.add_argument(
        "--budgets", type=_share, nargs="+", default=BUDGETS, help="of bench tokens: shares of block FLOPs"
    )
    group.add_argument("--repeats", type=int, default=3, help="timings of bench tokens; default: %(default)s")
    group.add_argument(
        "--maps", metavar="FILE", help="of calibrate --maps, for the paper's W H + b with whole matrices"
    )
    group.add_argument(
        "--profile", action="store_true", help="of bench overhead: say where the time of each kind of step goes"
    )
    group.add_argument("--output", metavar="FOLDER", default="results/bench", help="default: %(default)s")


def _share(word: str) -> float:
    share = float(word)
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{word} is not a share of the FLOPs: give more than 0, and at most 1")
    return share
