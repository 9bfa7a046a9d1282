"""`bench`: FastCache beside other caches, and its own parts on prompts that no calibration has seen."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from fastcache_xdit.bench.approximations import ApproximationRow, panels
from fastcache_xdit.bench.frontier import draw
from fastcache_xdit.cli.arguments import check_least
from fastcache_xdit.cli.batch_checks import recipe_of
from fastcache_xdit.cli.bench_kinds import (
    MEMORY_ITEMS,
    run_approximations,
    run_batch,
    run_costs,
    run_overhead,
    run_significance,
    run_tokens,
    say,
)
from fastcache_xdit.cli.options.bench import BenchOptions, add_arguments
from fastcache_xdit.cli.options.values import model_folder
from fastcache_xdit.cli.pipeline import call_arguments, pipeline_options
from fastcache_xdit.errors import UsageError
from fastcache_xdit.files import writable_folder
from fastcache_xdit.host.xdit import engine, world
from fastcache_xdit.plugin import register
from fastcache_xdit.shipped import SHIPPED, calibration_path, held_out_scenes
from fastcache_xdit.tuning.calls import PipelineCall
from fastcache_xdit.tuning.runner import Runner
from fastcache_xdit.tuning.versions import versions

CALIBRATED = ("approximations", "significance", "tokens")
KINDS = {
    "approximations": run_approximations,
    "significance": run_significance,
    "tokens": run_tokens,
    "costs": run_costs,
    "overhead": run_overhead,
}


def _measure(name: str, argv: list[str]) -> int:
    """Write one JSON for each number of steps, and one figure of all; costs are those of a step, so once is enough."""
    register()
    options = pipeline_options(BenchOptions, argv, add_arguments)
    source, call = model_folder(options.model), call_arguments(options)
    model, folder = _check(name, options), writable_folder(options.output)
    loaded = engine.Engine(source, options.xdit, options.dtype)
    loaded.pipe.set_progress_bar_config(disable=True)
    batches = engine.batches(held_out_scenes(options.count, options.seed), options.batch_size, options.seed)
    size: dict[str, Any] = {side: call[side] for side in ("height", "width") if side in call}
    settings = {"model": model, **size, "count": options.count, "seed": options.seed, **versions()}
    for steps in options.steps[:1] if name == "costs" else options.steps:
        arguments = [loaded.arguments(batch, **{**call, "num_inference_steps": steps}) for batch in batches]
        results = KINDS[name](Runner(loaded.pipe), [PipelineCall(each, 0) for each in arguments], options)
        if world.is_first_rank():
            _write(folder / f"{name}-{steps}.json", {**settings, "steps": steps, **results})
    if world.is_first_rank() and name == "approximations":
        files = sorted(folder.glob("approximations-*.json"))
        rows = [ApproximationRow(**row) for file in files for row in json.loads(file.read_text())["rows"]]
        draw(panels(rows), folder / "frontier.png")
    world.finish()
    return 0


def batch(argv: list[str]) -> int:
    """Run replicas of one rank beside each other, and one process over many items, each with `batch run`."""
    register()
    options = pipeline_options(BenchOptions, argv, add_arguments)
    recipe, model = recipe_of(options), _check("batch", options)
    texts = held_out_scenes(max(MEMORY_ITEMS, options.count), options.seed)
    folder = writable_folder(options.output)
    results = run_batch(recipe, texts, options.count, folder / "jobs")
    _write(folder / "batch.json", {"model": model, **versions(), **results})
    return 0


def _write(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=1) + "\n")
    say(f"fastcache: -> {path}")


def _check(name: str, options: BenchOptions) -> str:
    """Return the shipped model's name. Raises UsageError, before anything is loaded, for what cannot be measured."""
    if options.model not in SHIPPED:
        raise UsageError(f"bench knows held-out prompts of shipped models only: {', '.join(SHIPPED)}")
    check_least(1, steps=options.steps, count=options.count, repeats=options.repeats)
    if not 0 < options.tolerance < 1:
        raise UsageError(f"tolerance={options.tolerance} is not possible", "set a number between 0 and 1")
    if name in CALIBRATED:
        calibration_path(options.model)
    return options.model


approximations = functools.partial(_measure, "approximations")
significance = functools.partial(_measure, "significance")
tokens = functools.partial(_measure, "tokens")
costs = functools.partial(_measure, "costs")
overhead = functools.partial(_measure, "overhead")
