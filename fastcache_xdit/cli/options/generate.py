"""Options of `generate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastcache_xdit.cli.options.clips import add_clips
from fastcache_xdit.cli.options.goals import add_goals
from fastcache_xdit.cli.options.pipeline import PipelineOptions, add_pipeline_arguments


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(PipelineOptions):
    """Options of `generate`."""

    compare: bool
    fps: int | None
    output: str
    overwrite: bool


def add_arguments(group: Any) -> None:
    """Add the command's own options, beside xDiT's engine flags."""
    add_pipeline_arguments(group, batch_size=1)
    add_goals(group)
    add_clips(group)
    group.add_argument("--compare", action="store_true", help="also run uncached with the same seeds, and measure")
    group.add_argument("--output", default="results/generate", metavar="FOLDER", help="default: %(default)s")
    group.add_argument("--overwrite", action="store_true", help="replace the results of an earlier job in FOLDER")
