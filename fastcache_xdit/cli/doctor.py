"""`doctor`: what is installed, what this machine can run, and one line of advice for what does not fit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastcache_xdit.cli.arguments import check_least, own_options
from fastcache_xdit.cli.cache import cache_config
from fastcache_xdit.cli.options.doctor import DoctorOptions, add_arguments
from fastcache_xdit.cli.options.values import model_folder
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.doctor import checkpoint, machine, memory
from fastcache_xdit.doctor.finding import Finding, tried
from fastcache_xdit.errors import UsageError
from fastcache_xdit.host.xdit import loading, world
from fastcache_xdit.host.xdit.loading import DTYPES
from fastcache_xdit.host.xdit.runner import hub_id
from fastcache_xdit.models.architectures import ARCHITECTURES
from fastcache_xdit.shipped import SHIPPED, shipped_calibrations

STYLES = {"fine": "green", "hint": "yellow", "problem": "bold red"}
MARKS, PLAIN_MARKS = dict(zip(STYLES, "✓!✗", strict=True)), dict(zip(STYLES, "+!x", strict=True))


def main(argv: list[str]) -> int:
    """Examine everything; the first rank prints, and its exit code is 1 where there is a problem."""
    options = own_options(DoctorOptions, argv, add_arguments)
    request = _request(options)
    findings = _findings(options.model, options.calibration)
    if request and options.model:
        findings.append(_memory(options.model, request, cache_config(options.cache_config, model=options.model)))
    if not world.is_first_rank():
        return 0
    fine = not any(finding.problem for finding in findings)
    if options.json:
        print(json.dumps({"fine": fine, "findings": [finding.to_dict() for finding in findings]}, indent=1))
    else:
        _show(findings)
    return 0 if fine else 1


def _findings(model: str | None, calibrations: Sequence[Path] | None) -> list[Finding]:
    if model is None:
        return list(machine.examine())
    findings = list(machine.examine())
    folder = checkpoint.on_disk(_place(model))
    files = (shipped_calibrations(model) if model in SHIPPED else []) if calibrations is None else calibrations
    ranks = world.size() if world.size() > 1 else machine.places()
    return [*findings, *checkpoint.examine(model, folder, ranks, files)]


def _request(options: DoctorOptions) -> memory.RequestSize | None:
    """Return the request whose memory is asked for; None where none is.

    Raises:
        UsageError: a size is below 1, or a height is given without a width.
    """
    sizes = {"height": options.height, "width": options.width}
    steps = options.num_inference_steps
    check_least(1, **sizes, num_frames=options.num_frames, num_inference_steps=steps)
    if options.height is None and options.width is None:
        return None
    if options.height is None or options.width is None:
        raise UsageError("the size of a request is --height and --width", "give both")
    return memory.RequestSize(options.height, options.width, options.num_frames, steps, DTYPES[options.dtype])


def _memory(model: str, request: memory.RequestSize, config: FastCacheConfig) -> Finding:
    """Tell what the cache will hold for a request of a model on disk, or of a published one by its name."""
    if model.lower() in ARCHITECTURES:
        denoiser = memory.Denoiser.published(ARCHITECTURES[model.lower()])
        return tried("memory", partial(memory.examine, denoiser, config, request), "take granularity: output")
    folder = checkpoint.on_disk(_place(model))
    if not folder.is_dir():
        advice = f"give its folder, or one of {', '.join(ARCHITECTURES)}"
        return Finding("memory", f"the configs of {model} are not on this machine", advice)
    look = partial(memory.examine_saved, folder, config, request)
    return tried("memory", look, "give the folder of a whole diffusers pipeline")


def _place(model: str) -> str:
    """Return the folder or the hub id of a model, also of one that xDiT's runner knows by name."""
    try:
        return model_folder(model)
    except UsageError:
        if model in ARCHITECTURES:
            return model
        if not model[:1].isalnum() or "/" in model:
            raise
    loading.prepare()
    return hub_id(model)


def _show(findings: Sequence[Finding]) -> None:
    console, table = Console(highlight=False), Table.grid(padding=(0, 2))
    marks = MARKS if console.encoding == "utf-8" else PLAIN_MARKS
    for finding in findings:
        style = STYLES[finding.state]
        text = Text(finding.found)
        if finding.advice:
            text.append(f"\n{finding.advice}", style)
        table.add_row(Text(marks[finding.state], style), Text(finding.topic, "bold"), text)
    console.print(table, _summary(findings), sep="\n")


def _summary(findings: Sequence[Finding]) -> str:
    numbers = {state: sum(finding.state == state for finding in findings) for state in ("problem", "hint")}
    counts = [f"{number} {state}{'s' * (number > 1)}" for state, number in numbers.items() if number]
    return f"\n{' and '.join(counts) or 'All fine'}."
