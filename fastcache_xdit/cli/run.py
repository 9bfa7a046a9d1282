"""`run`: xDiT's own runner with FastCache registered."""

from __future__ import annotations

import argparse
import json
import runpy
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcache_xdit.cli.arguments import as_flags, cache_config, fill, look_ahead, parse, read_options
from fastcache_xdit.cli.goals import add_goals, goals_of, refuse_goals
from fastcache_xdit.goal import GOALS
from fastcache_xdit.host import cpu
from fastcache_xdit.host.xdit import checkpoint, registration, world
from fastcache_xdit.host.xdit.layout import Layout, check_cache, check_degrees
from fastcache_xdit.host.xdit.loading import XditOptions, xdit_options
from fastcache_xdit.host.xdit.runner import add_local_model, check_accepted, check_registered
from fastcache_xdit.plugin import applied, register


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of `run`: what it reads itself of xDiT's runner flags, and all of them, which xDiT's runner takes."""

    model: str
    cache_method: str | None
    cache_config: str | None
    goals: Mapping[str, float]
    attention_backend: str | None
    output_directory: str | None
    layout: Layout
    xdit: XditOptions
    flags: Mapping[str, Any]


def main(argv: list[str]) -> int:
    """Check the command line, then hand it to xDiT's runner. Raises UsageError for bad input, before a model loads."""
    register()
    parser = runner_parser()
    argv = command_line(parser, argv)
    options = run_options(parser, argv)
    check(options)
    if options.output_directory:
        Path(options.output_directory).mkdir(parents=True, exist_ok=True)  # xDiT fails there, after all the work
    sys.argv = ["fastcache_xdit run", *with_goal(argv, options), *_needed_here(options)]
    runpy.run_module("xfuser.runner", run_name="__main__", alter_sys=True)
    if world.is_first_rank():
        for handle in applied():
            print(f"fastcache: {handle.report()}")
    return 0


def add_arguments(parser: Any) -> None:
    """Add what `run` takes beside xDiT's runner flags."""
    parser.add_argument("--config", metavar="FILE.yaml", help="options by name; flags win over it")
    add_goals(parser)


def runner_parser() -> argparse.ArgumentParser:
    """Make a parser of the command's own options, which `--help` shows first, and xDiT's runner flags."""
    from xfuser import xFuserArgs
    from xfuser.config import FlexibleArgumentParser

    parser = FlexibleArgumentParser(
        prog="fastcache_xdit run", usage="fastcache_xdit run [options]", description=__doc__
    )
    own = parser.add_argument_group("options of run")
    add_arguments(own)
    xFuserArgs.add_runner_args(parser)
    parser._action_groups.sort(key=lambda group: group is not own)
    return parser


def command_line(parser: argparse.ArgumentParser, argv: list[str]) -> list[str]:
    """Write out `--config` as flags in front, because xDiT's runner reads no file."""
    ahead, rest = look_ahead(argv, "config")
    return [*as_flags(read_options(parser, ahead.config, rest)), *rest] if ahead.config else argv


def run_options(parser: argparse.ArgumentParser, argv: list[str]) -> RunOptions:
    """Parse a command line for xDiT's runner."""
    parsed = parse(parser, argv)
    return fill(
        RunOptions,
        parsed,
        goals=goals_of(parsed),
        layout=Layout.of(parsed),
        xdit=xdit_options(vars(parsed)),
        flags=vars(parsed),
    )


def check(options: RunOptions) -> None:
    """Raise UsageError for what cannot run here; a folder becomes a model of xDiT's runner."""
    check_degrees(options.layout, world.size())
    if options.cache_method == registration.METHOD:
        check_cache(options.layout, cache_config(options.cache_config, options.goals))
    else:
        refuse_goals(options.goals)
    folder = Path(options.model)
    if folder.is_dir():
        checkpoint.check_model(folder, options.layout)
        add_local_model(options.model)
    check_registered(options.model)
    check_accepted(options.model, options.xdit, options.flags)


def with_goal(argv: list[str], options: RunOptions) -> list[str]:
    """Write a goal into the cache's config, because xDiT's runner has no flags for goals."""
    if not options.goals:
        return argv
    _, rest = look_ahead(argv, *GOALS)
    config = cache_config(options.cache_config, options.goals)
    return [*rest, f"--cache_config={json.dumps(config.to_dict())}"]


def _needed_here(options: RunOptions) -> list[str]:
    """Flags that this machine needs and the user left to xDiT."""
    backend = cpu.attention_backend(options.layout.ring_degree)
    return ["--attention_backend", backend] if backend and not options.attention_backend else []
