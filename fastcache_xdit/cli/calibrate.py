"""`calibrate`: measure a model once, so that stand-ins are fitted and the significance test means something."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fastcache_xdit.cli.arguments import check_least, is_first_rank
from fastcache_xdit.cli.pipeline import (
    add_pipeline_arguments,
    call_arguments,
    model_folder,
    pipeline_options,
    prompts_of,
)
from fastcache_xdit.errors import UsageError
from fastcache_xdit.host.xdit import engine, layout, loading, world
from fastcache_xdit.models.catalogue import known_models
from fastcache_xdit.plugin import register
from fastcache_xdit.tuning.calibrate import Calibrator
from fastcache_xdit.tuning.coverage import Coverage, check_enough
from fastcache_xdit.tuning.runner import Runner


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options, beside xDiT's engine flags."""
    own = parser.add_argument_group("fastcache_xdit calibrate")
    add_pipeline_arguments(own, batch_size=4)
    own.add_argument("--output", metavar="FILE.safetensors", help="the calibration; an interrupted one is continued")
    own.add_argument("--lead_blocks", type=int, nargs="+", default=[0, 1], help="to serve; default: 0 1")
    own.add_argument(
        "--granularity", choices=["step", "group", "block"], default="step", help="to serve beside step; default: step"
    )
    own.add_argument("--groups", type=int, default=4, help="of --granularity group; default: 4")
    own.add_argument("--maps", action="store_true", help="also fit matrices, for stand_in affine with an affine_rank")
    own.add_argument(
        "--stages",
        type=int,
        nargs="+",
        default=[],
        help="PipeFusion degrees to serve where each stage skips for itself",
    )


def main(argv: list[str]) -> int:
    """Check the command line, then measure on every rank; the first one writes the file."""
    register()
    options = pipeline_options("calibrate", argv, add_arguments)
    model, call, prompts = model_folder(options["model"]), call_arguments(options), prompts_of(options)
    _check(options, model, prompts)
    runner = Runner(engine.Engine(model, options, options["dtype"] or loading.default_dtype()), call)
    runner.engine.pipe.set_progress_bar_config(disable=True)
    batches = engine.batches(prompts, options["batch_size"], options["seed"])
    facts = {"prompts": len(prompts), "seed": options["seed"], "batch_size": options["batch_size"], "call": call}
    calibrator = Calibrator(runner, batches, Path(options["output"]), _coverage(options), facts)
    with tqdm(disable=not is_first_rank(), unit="part") as bar:
        calibration = calibrator.run(lambda what, done, parts: _show(bar, what, done, parts))
    if is_first_rank():
        calibration.save(options["output"])
        errors = ", ".join(f"{key} {max(each.values()):.1%}" for key, each in calibration.facts["fit_error"].items())
        print(f"fastcache: calibrated on {len(prompts)} prompts, error where every other step is computed: {errors}")
        print(f"fastcache: -> {options['output']}; next: fastcache-xdit tune --calibration {options['output']}")
    world.finish()
    return 0


def _coverage(options: dict[str, Any]) -> Coverage:
    granularity, groups = options["granularity"], options["groups"]
    return Coverage(tuple(options["lead_blocks"]), tuple(options["stages"]), granularity, groups, options["maps"])


def _show(bar: Any, what: str, done: int, parts: int) -> None:
    bar.total = parts
    bar.set_description(what)
    bar.update(done - bar.n)


def _check(options: dict[str, Any], model: str, prompts: list[str]) -> None:
    """Raise UsageError, before a model loads, for what cannot work."""
    check_least(1, options, "groups", "stages")
    check_least(0, options, "lead_blocks")
    if not options["output"]:
        raise UsageError("nowhere to write: give --output FILE.safetensors")
    for degree in ("pipefusion_parallel_degree", "data_parallel_degree", "tensor_parallel_degree"):
        if (options[degree] or 1) > 1:
            raise UsageError(
                f"calibrate runs under ulysses, ring and CFG parallelism, not with {degree}={options[degree]}",
                "one calibration serves every layout (for pp_decision=stage add PipeFusion's degrees to --stages)",
            )
    layout.check_degrees(options, world.size())
    if Path(model).is_dir():
        layout.check_model(Path(model), options, known_models())
    check_enough(len(prompts), options["batch_size"])
