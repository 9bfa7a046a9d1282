"""What makes a job of a command line, and what a job cannot do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastcache_xdit.cli.arguments import check_least
from fastcache_xdit.cli.cache import chosen_cache
from fastcache_xdit.cli.options.batch import BatchRunOptions
from fastcache_xdit.cli.options.clips import check_clips
from fastcache_xdit.cli.options.pipeline import PipelineOptions
from fastcache_xdit.cli.options.values import model_folder
from fastcache_xdit.cli.pipeline import (
    MAKES_THE_IMAGE,
    call_arguments,
)
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.errors import UsageError
from fastcache_xdit.host.xdit import checkpoint, kinds
from fastcache_xdit.host.xdit.layout import Layout, check_cache
from fastcache_xdit.jobs.recipe import LEASE, Recipe

LEAST_LEASE = 1.0  # seconds; a replica shows that it gets on about twice a second


def recipe_of(
    options: PipelineOptions, fps: int | None = None, pipeline: str | None = None, lease: float = LEASE
) -> Recipe:
    """Turn a command line into what a job keeps of it. Raises UsageError for what cannot work."""
    model, config = model_folder(options.model), chosen_cache("batch", options)
    _check_model(model, options.layout)
    check_clips(fps)
    check_lease(lease)
    pipeline = pipeline or kinds.run_alone(model)
    if pipeline:
        kinds.check_kind(pipeline, model, options.layout)
    return Recipe(
        model=str(Path(model).resolve()) if Path(model).is_dir() else model,
        dtype=options.dtype,
        seed=options.seed,
        batch_size=options.batch_size,
        call=call_arguments(options),
        cache=_portable(config) if config else None,
        fps=fps,
        pipeline=pipeline,
        lease=lease,
        engine=dict(options.engine),
    )


def _portable(config: FastCacheConfig) -> dict[str, Any]:
    """A cache config that means the same in another folder."""
    path = {"calibration": str(Path(config.calibration).resolve())} if config.calibration else {}
    return config.to_dict() | path


def check_lease(seconds: float) -> None:
    """Raise UsageError for a lease that no step is short enough for, or that never ends."""
    if not LEAST_LEASE <= seconds < float("inf"):
        raise UsageError(f"lease={seconds:g} is not possible", f"set {LEAST_LEASE:g} s or more")


def refuse_settled(argv: list[str]) -> None:
    """Raise UsageError for an option of `run` that was settled at submit."""
    for word in argv:
        name = word.split("=")[0].removeprefix("--").replace("-", "_")
        if word.startswith("--") and name in MAKES_THE_IMAGE:
            raise UsageError(f"--{name} was settled when the job was submitted", "submit another job to change it")


def check_replicas(options: BatchRunOptions) -> None:
    """Raise UsageError where replicas are counted by the wrong option, or are none."""
    if options.ray is None and options.replicas is not None:
        raise UsageError("--replicas counts those of --ray", "under torchrun set --data_parallel_degree")
    if options.ray is not None and options.layout.data_parallel_degree > 1:
        raise UsageError("data_parallel_degree counts replicas under torchrun", "with --ray set --replicas")
    check_least(1, max_attempts=options.max_attempts, replicas=options.replicas)


def check_layout(recipe: Recipe, layout: Layout) -> None:
    """Raise UsageError for a layout in which the job cannot run; the number of ranks is not checked."""
    if recipe.config:
        check_cache(layout, recipe.config)
    if recipe.pipeline:
        kinds.check_kind(recipe.pipeline, recipe.model, layout)
    _check_model(recipe.model, layout)
    if Path(recipe.model).is_dir():
        checkpoint.check_call(Path(recipe.model), layout, recipe.call)


def _check_model(model: str, layout: Layout) -> None:
    if Path(model).is_dir():
        checkpoint.check_model(Path(model), layout)
