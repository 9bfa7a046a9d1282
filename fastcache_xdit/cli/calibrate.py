"""`calibrate`: measure a model once, so that stand-ins are fitted and the significance test means something."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fastcache_xdit.cli.arguments import check_least
from fastcache_xdit.cli.pipeline import (
    PipelineOptions,
    add_pipeline_arguments,
    call_arguments,
    model_folder,
    pipeline_options,
)
from fastcache_xdit.cli.prompts import prompts_of
from fastcache_xdit.errors import UsageError
from fastcache_xdit.files import writable_file
from fastcache_xdit.host.xdit import checkpoint, engine, layout, world
from fastcache_xdit.plugin import register
from fastcache_xdit.tuning.api import calibrate
from fastcache_xdit.tuning.coverage import LEAST_STEPS, UNCALIBRATED, check_enough


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions(PipelineOptions):
    """Options of `calibrate`."""

    output: str | None
    lead_blocks: tuple[int, ...]
    granularity: str
    groups: int
    maps: bool
    stages: tuple[int, ...]


def add_arguments(group: Any) -> None:
    """Add the command's own options, beside xDiT's engine flags."""
    add_pipeline_arguments(group, batch_size=4)
    group.add_argument("--output", metavar="FILE.safetensors", help="the calibration; an interrupted one is continued")
    group.add_argument("--lead_blocks", type=int, nargs="+", default=[0, 1], help="to serve; default: 0 1")
    group.add_argument(
        "--granularity", choices=["step", "group", "block"], default="step", help="to serve beside step; default: step"
    )
    group.add_argument("--groups", type=int, default=4, help="of --granularity group; default: 4")
    group.add_argument("--maps", action="store_true", help="also fit matrices, for stand_in affine with an affine_rank")
    group.add_argument(
        "--stages",
        type=int,
        nargs="+",
        default=[],
        help="PipeFusion degrees to serve where each stage skips for itself",
    )


def main(argv: list[str]) -> int:
    """Check the command line, then measure on every rank; the first one writes the file."""
    register()
    options = pipeline_options(CalibrateOptions, "calibrate", argv, add_arguments)
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
