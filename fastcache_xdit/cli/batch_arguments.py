"""What the actions of `batch` take, and what makes a job of it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fastcache_xdit.cli.arguments import check_least
from fastcache_xdit.cli.pipeline import (
    add_pipeline_arguments,
    call_arguments,
    check_cached_layout,
    chosen_cache,
    engine_parser,
    model_folder,
)
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.errors import UsageError
from fastcache_xdit.host.xdit import layout, loading
from fastcache_xdit.jobs.desk import MAX_ATTEMPTS
from fastcache_xdit.jobs.recipe import Recipe
from fastcache_xdit.models.catalogue import known_models

# Flags of xDiT's that make the image: they belong to the job from submit on.
MAKES_THE_IMAGE = (
    "model", "dtype", "seed", "batch_size", "prompt", "prompts", "negative_prompt", "num_inference_steps",
    "guidance_scale", "height", "width", "max_sequence_length", "cache", "cache_method", "cache_config", "config",
)  # fmt: skip


def add_submit(parser: argparse.ArgumentParser) -> None:
    """Options of `batch submit`, beside xDiT's engine flags."""
    own = parser.add_argument_group("fastcache_xdit batch submit")
    own.add_argument("job", metavar="JOB", help="folder of the new job, on a local disk")
    add_pipeline_arguments(own, batch_size=1)


def add_run(parser: argparse.ArgumentParser) -> None:
    """Options of `batch run`, beside xDiT's engine flags."""
    own = parser.add_argument_group("fastcache_xdit batch run")
    add_job(own)
    own.add_argument(
        "--max_attempts",
        type=int,
        default=MAX_ATTEMPTS,
        help="an item is failed after so many attempts that each ended with a dead process; default: %(default)s",
    )
    own.add_argument(
        "--ray", nargs="?", const="", metavar="ADDRESS", help="on a Ray cluster; without ADDRESS, on one started here"
    )
    own.add_argument("--replicas", type=int, help="with --ray: copies of the model that work at once; default: 1")


def add_status(parser: argparse.ArgumentParser) -> None:
    """Options of `batch status`."""
    add_job(parser)
    parser.add_argument("--json", action="store_true", help="for programs: counts by state and the sums behind them")


def add_export(parser: argparse.ArgumentParser) -> None:
    """Options of `batch export`."""
    add_job(parser)
    parser.add_argument("--output", required=True, metavar="FILE", help="table to write: .jsonl, .csv or .parquet")


def add_job(parser: Any) -> None:
    """The option that every action has."""
    parser.add_argument("job", metavar="JOB", help="folder that the job was submitted to")


def recipe_of(options: dict[str, Any]) -> Recipe:
    """What a command line asks for. Raises UsageError for what cannot work."""
    model, config = model_folder(options["model"]), chosen_cache("batch", options)
    _check_model(model, config, options)
    return Recipe(
        model=str(Path(model).resolve()) if Path(model).is_dir() else model,
        dtype=options["dtype"] or loading.default_dtype(),
        seed=options["seed"],
        batch_size=options["batch_size"],
        call=call_arguments(options),
        cache=_portable(config) if config else None,
        engine=_engine_options(options),
    )


def _portable(config: FastCacheConfig) -> dict[str, Any]:
    """A cache config that means the same in another folder."""
    path = {"calibration": str(Path(config.calibration).resolve())} if config.calibration else {}
    return config.to_dict() | path


def _engine_options(options: dict[str, Any]) -> dict[str, Any]:
    """xDiT's options that differ from its defaults and do not make the image: the layout, above all."""
    plain = engine_parser("batch", lambda _: None)
    names = {action.dest for action in plain._actions} - {*MAKES_THE_IMAGE, "help"}
    return {name: options[name] for name in sorted(names) if options[name] != plain.get_default(name)}


def refuse_settled(argv: list[str]) -> None:
    """Raise UsageError for an option of `run` that was settled at submit."""
    for word in argv:
        name = word.split("=")[0].removeprefix("--").replace("-", "_")
        if word.startswith("--") and name in MAKES_THE_IMAGE:
            raise UsageError(f"--{name} was settled when the job was submitted", "submit another job to change it")


def check_replicas(options: dict[str, Any]) -> None:
    """Raise UsageError where replicas are counted by the wrong option, or are none."""
    if options["ray"] is None and options["replicas"] is not None:
        raise UsageError("--replicas counts those of --ray", "under torchrun set --data_parallel_degree")
    if options["ray"] is not None and (options["data_parallel_degree"] or 1) > 1:
        raise UsageError("data_parallel_degree counts replicas under torchrun", "with --ray set --replicas")
    check_least(1, options, "max_attempts", "replicas")


def check_layout(recipe: Recipe, options: dict[str, Any]) -> None:
    """Raise UsageError for a layout in which the job cannot run; that there are as many ranks is not looked at."""
    config = FastCacheConfig.from_dict(recipe.cache) if recipe.cache is not None else None
    if config:
        check_cached_layout(config, options)
    _check_model(recipe.model, config, options)


def _check_model(model: str, config: FastCacheConfig | None, options: dict[str, Any]) -> None:
    if Path(model).is_dir():
        layout.check_model(Path(model), options, known_models() if config else [])
