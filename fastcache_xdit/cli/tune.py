"""`tune`: from a target (speedup, quality or budget) to a config that `--cache_config` takes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.cli.arguments import check_least
from fastcache_xdit.cli.pipeline import (
    PipelineOptions,
    add_pipeline_arguments,
    call_arguments,
    model_folder,
    pipeline_options,
    prompts_in,
    prompts_of,
)
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.errors import UsageError
from fastcache_xdit.files import writable_file
from fastcache_xdit.host.xdit import engine, layout, world
from fastcache_xdit.plugin import register
from fastcache_xdit.tuning.coverage import check_enough
from fastcache_xdit.tuning.polish import Polisher
from fastcache_xdit.tuning.refit import Refitter
from fastcache_xdit.tuning.runner import Runner
from fastcache_xdit.tuning.search import Search, Trial
from fastcache_xdit.tuning.targets import Target, find, merged


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


@dataclass(frozen=True)
class _Plan:
    """What is looked for, and what loads the model and gives a search for each number of steps."""

    target: Target
    calibration: Path
    output: Path
    searches: Callable[[], Iterator[Search]]


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


def main(argv: list[str]) -> int:
    """Check the command line, then search on every rank; the first one writes the config."""
    register()
    options = pipeline_options(TuneOptions, "tune", argv, add_arguments)
    plan = _checked(options)
    searches: list[Search] = []
    trials: list[Trial] = []
    for search in plan.searches():
        searches.append(search)
        trials.append(find(search, plan.target, options.evaluations, _say))
    if world.is_first_rank():
        _write(trials, plan, [f"# Tuned for {options.target} on {options.model}:"])
        _show_frontier(searches)
        calls = sum(len(search.tried) for search in searches)
        print(f"fastcache: {calls} generations of {len(prompts_of(options))} prompts -> {plan.output}")
    world.finish()
    return 0


def _checked(options: TuneOptions) -> _Plan:
    """Raise UsageError, before a model loads, for what cannot work."""
    model, call, prompts = model_folder(options.model), call_arguments(options), prompts_of(options)
    check_least(1, steps=options.steps, evaluations=options.evaluations)
    check_least(0, polish=options.polish, lead_blocks=options.lead_blocks)
    path = _given("calibration", options.calibration)
    target, output = _given("target", options.target), writable_file(_given("output", options.output))
    aim, calibration = Target.parse(target), Calibration.load(path)
    start = FastCacheConfig.from_file(options.start) if options.start else None
    refit_batches = _refit_batches(options)
    layout.check_degrees(options.layout, world.size())

    def searches() -> Iterator[Search]:
        runner = Runner(engine.Engine(model, options.xdit, options.dtype), call)
        runner.engine.pipe.set_progress_bar_config(disable=True)
        batches = engine.batches(prompts, options.batch_size, options.seed)
        for steps in options.steps or [call["num_inference_steps"]]:
            stepped = runner.steps(steps)
            refitter = Refitter(stepped, refit_batches, calibration) if refit_batches else None
            polisher = Polisher(stepped, refit_batches, options.polish) if options.polish else None
            lead, seed = options.lead_blocks, options.seed
            yield Search(stepped, batches, calibration, path, lead, seed, start, refitter, polisher)

    return _Plan(aim, Path(path), output, searches)


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


def _write(trials: list[Trial], plan: _Plan, lines: list[str]) -> None:
    """Write only what differs from the defaults, under these comments; refits in a file beside it.

    Paths in the config are relative to its folder.
    """
    path, calibration = plan.output, plan.calibration
    path.parent.mkdir(parents=True, exist_ok=True)
    config, refits = merged(trials)
    if refits:
        base, calibration = calibration, path.with_suffix(".safetensors")
        replace(Calibration.load(base), refits=refits).save_refits(calibration, base)
    values = config.model_dump(exclude_defaults=True)
    values["calibration"] = os.path.relpath(calibration, path.parent)
    for trial in trials:
        lines.append(f"#   {len(trial.mask)} steps: {trial.compute_ratio:.1%} of block FLOPs, {trial.psnr_db:.1f} dB")
    path.write_text("\n".join(lines) + "\n" + yaml.safe_dump(values, sort_keys=False))


def _show_frontier(searches: list[Search]) -> None:
    """Print the best mask for each number of computed steps that was tried."""
    for search in searches:
        print(f"fastcache: {search.steps} steps: computed, share of block FLOPs, PSNR")
        best: dict[float, Trial] = {}
        for trial in search.tried.values():
            if trial.psnr_db > best.get(trial.compute_ratio, trial._replace(psnr_db=0)).psnr_db:
                best[trial.compute_ratio] = trial
        for ratio, trial in sorted(best.items()):
            print(f"  {trial.mask.count('1'):>3}  {ratio:6.1%}  {trial.psnr_db:5.1f} dB  {trial.mask}")
