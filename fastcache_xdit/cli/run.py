"""`run`: xDiT's own runner with FastCache registered."""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastcache_xdit.cli.arguments import as_flags, cache_config, is_first_rank, look_ahead, parse, read_options
from fastcache_xdit.host import cpu
from fastcache_xdit.host.xdit import layout, registration, world
from fastcache_xdit.host.xdit.runner import add_local_model, check_registered
from fastcache_xdit.models.catalogue import known_models
from fastcache_xdit.plugin import applied, register


def main(argv: list[str]) -> int:
    """Check the command line, then hand it to xDiT's runner. Raises UsageError for bad input, before a model loads."""
    register()
    from xfuser import xFuserArgs
    from xfuser.config import FlexibleArgumentParser

    parser = xFuserArgs.add_runner_args(FlexibleArgumentParser(prog="fastcache_xdit run", description=__doc__))
    argv = command_line(parser, argv)
    options = vars(parse(parser, argv))
    _check(options)
    if options.get("output_directory"):
        Path(options["output_directory"]).mkdir(parents=True, exist_ok=True)  # xDiT fails there, after all the work
    sys.argv = ["fastcache_xdit run", *argv, *_needed_here(options)]
    runpy.run_module("xfuser.runner", run_name="__main__", alter_sys=True)
    if is_first_rank():
        for handle in applied():
            print(f"fastcache: {handle.report()}")
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `run` takes beside xDiT's runner flags."""
    parser.add_argument("--config", metavar="FILE.yaml", help="options by name; flags win over it")


def command_line(parser: argparse.ArgumentParser, argv: list[str]) -> list[str]:
    """The command line for xDiT's runner, which reads no file: `--config` is written out as flags in front."""
    add_arguments(parser)
    ahead, rest = look_ahead(argv, "config")
    return [*as_flags(read_options(parser, ahead.config, rest)), *rest] if ahead.config else argv


def _check(options: Mapping[str, Any]) -> None:
    caches = options["cache_method"] == registration.METHOD
    layout.check_degrees(options, world.size())
    if caches:
        config = cache_config(options["cache_config"])
        layout.check_cache(options)
        layout.check_decision(config, options["pipefusion_parallel_degree"])
    folder = Path(options["model"])
    if folder.is_dir():
        layout.check_model(folder, options, known_models() if caches else [])
        add_local_model(options["model"])
    check_registered(options["model"])


def _needed_here(options: Mapping[str, Any]) -> list[str]:
    """Flags that this machine needs and the user left to xDiT."""
    backend = cpu.attention_backend(options["ring_degree"])
    return ["--attention_backend", backend] if backend and not options["attention_backend"] else []
