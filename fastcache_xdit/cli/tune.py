"""`tune`: from a target (speedup, quality or budget) to a config that `--cache_config` takes."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.cli.arguments import check_least, is_first_rank
from fastcache_xdit.cli.pipeline import (
    add_pipeline_arguments,
    call_arguments,
    model_folder,
    pipeline_options,
    prompts_of,
)
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.errors import UsageError
from fastcache_xdit.host.xdit import engine, layout, loading, world
from fastcache_xdit.plugin import register
from fastcache_xdit.tuning.coverage import check_enough
from fastcache_xdit.tuning.polish import Polisher
from fastcache_xdit.tuning.refit import Refitter
from fastcache_xdit.tuning.runner import Runner
from fastcache_xdit.tuning.search import Search, Trial
from fastcache_xdit.tuning.targets import Target, find, merged


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options, beside xDiT's engine flags."""
    own = parser.add_argument_group("fastcache_xdit tune")
    add_pipeline_arguments(own, batch_size=4)
    own.add_argument("--calibration", metavar="FILE.safetensors", help="from fastcache-xdit calibrate")
    own.add_argument("--target", metavar="KIND=NUMBER", help="speedup=2.5, psnr=34 or budget=0.4 (of block FLOPs)")
    own.add_argument("--steps", type=int, nargs="+", help="numbers of steps to tune for; default: num_inference_steps")
    own.add_argument("--evaluations", type=int, default=24, help="generations of all prompts per number of steps")
    own.add_argument("--refit_prompts", metavar="FILE", help="to fit found masks on once more; default: no such fits")
    own.add_argument("--polish", type=int, default=0, help="then train them on so many batches of those; default: 0")
    own.add_argument("--start", metavar="FILE.yaml", help="a config of an earlier search, whose masks are tried first")
    own.add_argument("--lead_blocks", type=int, default=0, help="always computed; default: 0")
    own.add_argument("--output", metavar="FILE.yaml", help="the config")


def main(argv: list[str]) -> int:
    """Check the command line, then search on every rank; the first one writes the config."""
    register()
    options = pipeline_options("tune", argv, add_arguments)
    target, searches_of = _checked(options)
    output, trials = Path(options["output"]), []
    searches: list[Search] = []
    for search in searches_of():
        searches.append(search)
        trials.append(find(search, target, options["evaluations"], _say))
    if is_first_rank():
        _write(trials, output, options)
        _frontier(searches)
        calls = sum(len(search.tried) for search in searches)
        print(f"fastcache: {calls} generations of {len(prompts_of(options))} prompts -> {output}")
    world.finish()
    return 0


def _checked(options: dict[str, Any]) -> tuple[Target, Callable[[], Iterator[Search]]]:
    """The target, and what loads the model and gives a search for each number of steps.

    Raises:
        UsageError: before a model loads, for what cannot work.
    """
    model, call, prompts = model_folder(options["model"]), call_arguments(options), prompts_of(options)
    check_least(1, options, "steps", "evaluations")
    check_least(0, options, "polish", "lead_blocks")
    for name in ("calibration", "target", "output"):
        if not options[name]:
            raise UsageError(f"--{name} is missing", "--help lists the options")
    target, calibration = Target.parse(options["target"]), Calibration.load(options["calibration"])
    start = FastCacheConfig.from_file(options["start"]) if options["start"] else None
    refit_batches = _refit_batches(options)
    layout.check_degrees(options, world.size())

    def searches() -> Iterator[Search]:
        runner = Runner(engine.Engine(model, options, options["dtype"] or loading.default_dtype()), call)
        runner.engine.pipe.set_progress_bar_config(disable=True)
        batches = engine.batches(prompts, options["batch_size"], options["seed"])
        path = options["calibration"]
        for steps in options["steps"] or [call["num_inference_steps"]]:
            stepped = runner.steps(steps)
            refitter = Refitter(stepped, refit_batches, calibration) if refit_batches else None
            polisher = Polisher(stepped, refit_batches, options["polish"]) if options["polish"] else None
            lead, seed = options["lead_blocks"], options["seed"]
            yield Search(stepped, batches, calibration, path, lead, seed, start, refitter, polisher)

    return target, searches


def _refit_batches(options: dict[str, Any]) -> list[engine.Batch]:
    """Raises UsageError for too few prompts, or for what cannot be trained."""
    if options["polish"] and world.size() > 1:
        raise UsageError(
            f"--polish trains through the whole sampler, which {world.size()} ranks cannot",
            "run tune in one process: what it finds serves every layout",
        )
    if not options["refit_prompts"]:
        if options["polish"]:
            raise UsageError("--polish needs prompts to train on: give --refit_prompts FILE")
        return []
    prompts = prompts_of({"prompt": None, "prompts": options["refit_prompts"]})
    check_enough(len(prompts), options["batch_size"])
    return engine.batches(prompts, options["batch_size"], options["seed"] + 1)


def _say(line: str) -> None:
    if is_first_rank():
        print(f"fastcache: {line}", flush=True)


def _write(trials: list[Trial], path: Path, options: dict[str, Any]) -> None:
    """Only what differs from the defaults; refits in a file beside it; paths relative to the config."""
    path.parent.mkdir(parents=True, exist_ok=True)
    config, refits = merged(trials)
    calibration = Path(options["calibration"])
    if refits:
        base, calibration = calibration, path.with_suffix(".safetensors")
        replace(Calibration.load(base), refits=refits).save_refits(calibration, base)
    values = config.model_dump(exclude_defaults=True)
    values["calibration"] = os.path.relpath(calibration, path.parent)
    lines = [f"# Tuned for {options['target']} on {options['model']}:"]
    for trial in trials:
        lines.append(f"#   {len(trial.mask)} steps: {trial.compute_ratio:.1%} of block FLOPs, {trial.psnr_db:.1f} dB")
    path.write_text("\n".join(lines) + "\n" + yaml.safe_dump(values, sort_keys=False))


def _frontier(searches: list[Search]) -> None:
    """For each number of computed steps that was tried, the best mask."""
    for search in searches:
        print(f"fastcache: {search.steps} steps: computed, share of block FLOPs, PSNR")
        best: dict[float, Trial] = {}
        for trial in search.tried.values():
            if trial.psnr_db > best.get(trial.compute_ratio, trial._replace(psnr_db=0)).psnr_db:
                best[trial.compute_ratio] = trial
        for ratio, trial in sorted(best.items()):
            print(f"  {trial.mask.count('1'):>3}  {ratio:6.1%}  {trial.psnr_db:5.1f} dB  {trial.mask}")
