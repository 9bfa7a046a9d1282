"""Options of the actions of `batch`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastcache_xdit.cli.options.clips import add_clips
from fastcache_xdit.cli.options.goals import add_goals
from fastcache_xdit.cli.options.pipeline import PipelineOptions, add_pipeline_arguments
from fastcache_xdit.host.xdit.layout import Layout
from fastcache_xdit.jobs.recipe import LEASE, MAX_ATTEMPTS

if TYPE_CHECKING:
    from fastcache_xdit.host.xdit.loading import XditOptions


@dataclass(frozen=True, kw_only=True)
class SubmitOptions(PipelineOptions):
    """Options of `batch submit`."""

    job: str
    fps: int | None
    pipeline: str | None
    lease: float


@dataclass(frozen=True, kw_only=True)
class BatchRunOptions:
    """Options of `batch run`; `ray` is "" for a cluster that is started here, and None for no cluster."""

    job: Path
    max_attempts: int
    ray: str | None
    replicas: int | None
    xdit: XditOptions
    layout: Layout


@dataclass(frozen=True)
class StatusOptions:
    """Options of `batch status`."""

    job: Path
    json: bool


@dataclass(frozen=True)
class RetryOptions:
    """Options of `batch retry`."""

    job: Path


@dataclass(frozen=True)
class ExportOptions:
    """Options of `batch export`."""

    job: Path
    output: Path


def add_submit(group: Any) -> None:
    """Add the options of `batch submit`, beside xDiT's engine flags."""
    group.add_argument("job", metavar="JOB", help="folder of the new job, on a local disk")
    add_pipeline_arguments(group, batch_size=1)
    add_goals(group)
    add_clips(group)
    group.add_argument(
        "--pipeline", metavar="CLASS", help="load the model as this class of diffusers, such as FluxImg2ImgPipeline"
    )
    group.add_argument(
        "--lease",
        type=float,
        metavar="SECONDS",
        default=LEASE,
        help="without progress, after which others take a replica's items and it starts again; default: %(default)g",
    )


def add_run(group: Any) -> None:
    """Add the options of `batch run`, beside xDiT's engine flags."""
    add_job(group)
    group.add_argument(
        "--max_attempts",
        type=int,
        default=MAX_ATTEMPTS,
        help="an item is failed after so many attempts that each ended with a dead process; default: %(default)s",
    )
    group.add_argument(
        "--ray", nargs="?", const="", metavar="ADDRESS", help="on a Ray cluster; without ADDRESS, on one started here"
    )
    group.add_argument("--replicas", type=int, help="with --ray: copies of the model that work at once; default: 1")


def add_status(group: Any) -> None:
    """Add the options of `batch status`."""
    add_job(group)
    group.add_argument("--json", action="store_true", help="for programs: counts by state and the sums behind them")


def add_export(group: Any) -> None:
    """Add the options of `batch export`."""
    add_job(group)
    group.add_argument("--output", type=Path, required=True, metavar="FILE", help="a .jsonl, .csv or .parquet file")


def add_job(group: Any) -> None:
    """Add what every action but `submit` takes."""
    group.add_argument("job", type=Path, metavar="JOB", help="folder that the job was submitted to")
