"""`tune`: from a target (speedup, quality or budget) to a config that `--cache_config` takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.cli.arguments import check_least
from fastcache_xdit.cli.options.tune import TuneOptions, add_arguments
from fastcache_xdit.cli.options.values import model_folder
from fastcache_xdit.cli.pipeline import (
    call_arguments,
    pipeline_options,
)
from fastcache_xdit.cli.prompts import prompts_in, prompts_of
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.errors import UsageError
from fastcache_xdit.files import writable_file
from fastcache_xdit.host.xdit import engine, layout, world
from fastcache_xdit.plugin import register
from fastcache_xdit.tuning.api import tune
from fastcache_xdit.tuning.coverage import check_enough
from fastcache_xdit.tuning.search import Trial
from fastcache_xdit.tuning.targets import Target
from fastcache_xdit.tuning.tuned import Tuned


def main(argv: list[str]) -> int:
    """Check the command line, then search on every rank; the first one writes the config."""
    register()
    options = pipeline_options(TuneOptions, argv, add_arguments)
    model, call, prompts = model_folder(options.model), call_arguments(options), prompts_of(options)
    output, calibration, search = _checked(options)
    loaded = engine.Engine(model, options.xdit, options.dtype)
    loaded.pipe.set_progress_bar_config(disable=True)
    batches = engine.batches(prompts, options.batch_size, options.seed), _refit_batches(options)
    calls, refit_calls = ([loaded.arguments(batch, **call) for batch in each] for each in batches)
    tuned = tune(loaded.pipe, calls, refit_calls=refit_calls, report=_say, **search)
    if world.is_first_rank():
        tuned.save(output, calibration, f"Tuned for {options.target} on {options.model}:")
        _show_frontier(tuned)
        runs = sum(len(trials) for trials in tuned.tried.values())
        print(f"fastcache: {runs} generations of {len(prompts)} prompts -> {output}")
    world.finish()
    return 0


def _checked(options: TuneOptions) -> tuple[Path, Path, dict[str, Any]]:
    """Return the file to write, that of the calibration, and what is asked of `tune`.

    Raises:
        UsageError: before a model loads, for what cannot work.
    """
    check_least(1, steps=options.steps, evaluations=options.evaluations)
    check_least(0, polish=options.polish, lead_blocks=options.lead_blocks)
    path = _given("calibration", options.calibration)
    target, output = _given("target", options.target), writable_file(_given("output", options.output))
    Target.parse(target)
    Calibration.load(path)
    start = FastCacheConfig.from_file(options.start) if options.start else None
    _refit_batches(options)
    layout.check_degrees(options.layout, world.size())
    same = {name: getattr(options, name) for name in ("steps", "evaluations", "polish", "lead_blocks", "seed")}
    return output, Path(path), {**same, "calibration": path, "target": target, "start": start}


def _given(name: str, value: str | None) -> str:
    if not value:
        raise UsageError(f"--{name} is missing", "--help lists the options")
    return value


def _refit_batches(options: TuneOptions) -> list[engine.Batch]:
    """Raises UsageError for too few prompts, or for what cannot be trained."""
    if options.polish and world.size() > 1:
        raise UsageError(
            f"--polish trains through the whole sampler, which {world.size()} ranks cannot",
            "run tune in one process: what it finds serves every layout",
        )
    if not options.refit_prompts:
        if options.polish:
            raise UsageError("--polish needs prompts to train on: give --refit_prompts FILE")
        return []
    prompts = prompts_in(options.refit_prompts)
    check_enough(len(prompts), options.batch_size)
    return engine.batches(prompts, options.batch_size, options.seed + 1)


def _say(line: str) -> None:
    if world.is_first_rank():
        print(f"fastcache: {line}", flush=True)


def _show_frontier(tuned: Tuned) -> None:
    """Print the best mask for each number of computed steps that was tried."""
    for steps, trials in tuned.tried.items():
        print(f"fastcache: {steps} steps: computed, share of block FLOPs, PSNR")
        best: dict[float, Trial] = {}
        for trial in trials:
            if trial.psnr_db > best.get(trial.compute_ratio, trial._replace(psnr_db=0)).psnr_db:
                best[trial.compute_ratio] = trial
        for ratio, trial in sorted(best.items()):
            print(f"  {trial.mask.count('1'):>3}  {ratio:6.1%}  {trial.psnr_db:5.1f} dB  {trial.mask}")
