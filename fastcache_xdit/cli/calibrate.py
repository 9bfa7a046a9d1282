"""`calibrate`: measure a model once, so that stand-ins are fitted and the significance test means something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tqdm import tqdm

from fastcache_xdit.cli.arguments import check_least
from fastcache_xdit.cli.options.calibrate import CalibrateOptions, add_arguments
from fastcache_xdit.cli.options.values import model_folder
from fastcache_xdit.cli.pipeline import (
    call_arguments,
    pipeline_options,
)
from fastcache_xdit.cli.prompts import prompts_of
from fastcache_xdit.errors import UsageError
from fastcache_xdit.files import writable_file
from fastcache_xdit.host.xdit import checkpoint, engine, layout, world
from fastcache_xdit.plugin import register
from fastcache_xdit.tuning.api import calibrate
from fastcache_xdit.tuning.coverage import LEAST_STEPS, UNCALIBRATED, check_enough


def main(argv: list[str]) -> int:
    """Check the command line, then measure on every rank; the first one writes the file."""
    register()
    options = pipeline_options(CalibrateOptions, argv, add_arguments)
    model, call, prompts = model_folder(options.model), call_arguments(options), prompts_of(options)
    output = _checked_output(options, model, prompts)
    loaded = engine.Engine(model, options.xdit, options.dtype)
    loaded.pipe.set_progress_bar_config(disable=True)
    batches = engine.batches(prompts, options.batch_size, options.seed)
    facts = {"prompts": len(prompts), "seed": options.seed, "batch_size": options.batch_size, "call": call}
    with tqdm(disable=not world.is_first_rank(), unit="part") as bar:
        calibration = calibrate(
            loaded.pipe,
            [loaded.arguments(batch, **call) for batch in batches],
            output=output,
            lead_blocks=options.lead_blocks,
            granularity=options.granularity,
            groups=options.groups,
            maps=options.maps,
            stages=options.stages,
            facts=facts,
            report=lambda what, done, parts: _show(bar, what, done, parts),
        )
    if world.is_first_rank():
        errors = ", ".join(f"{key} {max(fits.values()):.1%}" for key, fits in calibration.facts["fit_error"].items())
        print(f"fastcache: calibrated on {len(prompts)} prompts, error where every other step is computed: {errors}")
        print(f"fastcache: -> {output}; next: fastcache-xdit tune --calibration {output}")
    world.finish()
    return 0


def _show(bar: Any, what: str, done: int, parts: int) -> None:
    bar.total = parts
    bar.set_description(what)
    bar.update(done - bar.n)


def _checked_output(options: CalibrateOptions, model: str, prompts: list[str]) -> Path:
    """Return the file to write. Raises UsageError, before a model loads, for what cannot work."""
    check_least(1, groups=options.groups, stages=options.stages)
    check_least(0, lead_blocks=options.lead_blocks)
    check_least(LEAST_STEPS, num_inference_steps=options.call.get("num_inference_steps"))
    if not options.output:
        raise UsageError("nowhere to write: give --output FILE.safetensors")
    for name in (*UNCALIBRATED, "data_parallel_degree"):
        if (degree := options.layout.degrees[name]) > 1:
            raise UsageError(
                f"calibrate runs under ulysses, ring and CFG parallelism, not with {name}={degree}",
                "one calibration serves every layout (for pp_decision=stage add PipeFusion's degrees to --stages)",
            )
    layout.check_degrees(options.layout, world.size())
    if Path(model).is_dir():
        checkpoint.check_model(Path(model), options.layout)
    check_enough(len(prompts), options.batch_size)
    return writable_file(options.output)
