"""`run`: xDiT's own runner with FastCache registered."""

from __future__ import annotations

import argparse
import json
import runpy
import sys
from pathlib import Path

from fastcache_xdit.cli.arguments import as_flags, fill, look_ahead, named_in, parse, read_options
from fastcache_xdit.cli.cache import cache_config, check_flags
from fastcache_xdit.cli.offload import check_offload
from fastcache_xdit.cli.options.goals import goals_of, refuse_goals
from fastcache_xdit.cli.options.run import RunOptions, add_arguments
from fastcache_xdit.cli.options.values import is_preset
from fastcache_xdit.files import writable_folder
from fastcache_xdit.goal import GOALS
from fastcache_xdit.host import cpu
from fastcache_xdit.host.xdit import checkpoint, flags, hub, world
from fastcache_xdit.host.xdit.layout import Layout, check_cache, check_degrees
from fastcache_xdit.host.xdit.loading import xdit_options
from fastcache_xdit.host.xdit.runner import add_local_model, check_accepted, check_registered, hub_id, write_clips
from fastcache_xdit.plugin import keeping, register
from fastcache_xdit.undo import Undo


def main(argv: list[str]) -> int:
    """Check the command line, then hand it to xDiT's runner. Raises UsageError for bad input, before a model loads."""
    register()
    parser = runner_parser()
    argv = command_line(parser, argv)
    options = run_options(parser, argv)
    check(options)
    hub.check_there(hub_id(options.model))
    folder = writable_folder(options.output_directory)
    folder.mkdir(parents=True, exist_ok=True)  # xDiT fails there, after all the work
    sys.argv = ["fastcache_xdit run", *as_xdit_reads_it(argv, options), *_needed_here(options)]
    before = _files(folder)
    with Undo() as undo, keeping() as handles:  # the runner lets go of its pipeline at the end
        write_clips(undo)
        runpy.run_module("xfuser.runner", run_name="__main__", alter_sys=True)
    if world.is_first_rank():
        for handle in handles:
            print(f"fastcache: {handle.report()}")
    if world.is_last_rank() and (written := sorted(_files(folder) - before)):  # the rank that xDiT saves on
        print(f"fastcache: {', '.join(name for name, _ in written)} -> {folder}")
    return 0


def _files(folder: Path) -> set[tuple[str, int]]:
    """List the files of a folder, with the time in nanoseconds when each was last written."""
    return {(file.name, file.stat().st_mtime_ns) for file in folder.iterdir() if file.is_file()}


def runner_parser() -> argparse.ArgumentParser:
    """Make a parser of the command's own options and xDiT's runner flags."""
    parser: argparse.ArgumentParser = flags.parser(flags.RUNNER)
    add_arguments(parser)
    return parser


def command_line(parser: argparse.ArgumentParser, argv: list[str]) -> list[str]:
    """Write out `--config` as flags in front, because xDiT's runner reads no file."""
    ahead, rest = look_ahead(argv, "config")
    return [*as_flags(read_options(parser, ahead.config, rest)), *rest] if ahead.config else argv


def run_options(parser: argparse.ArgumentParser, argv: list[str]) -> RunOptions:
    """Parse a command line for xDiT's runner."""
    parsed = parse(parser, argv)
    check_flags(parsed, named_in(argv))
    check_offload(parsed, by_runner=True)
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
    if options.cache_method == flags.METHOD:
        check_cache(options.layout, cache_config(options.cache_config, options.goals, options.model))
    else:
        refuse_goals(options.goals)
    cpu.check_conversions(options.xdit)
    folder = Path(options.model)
    if folder.is_dir():
        checkpoint.check_model(folder, options.layout)
        add_local_model(options.model)
    check_registered(options.model)
    check_accepted(options.model, options.xdit, options.flags)


def as_xdit_reads_it(argv: list[str], options: RunOptions) -> list[str]:
    """Write --output by its name in xDiT, and a goal or a preset into the cache's config: its runner knows neither."""
    ahead, rest = look_ahead(argv, *GOALS, "output")
    if ahead.output:
        rest.append(f"--output_directory={ahead.output}")
    if not options.goals and not is_preset(options.cache_config):
        return rest
    config = cache_config(options.cache_config, options.goals, options.model)
    return [*rest, f"--cache_config={json.dumps(config.to_dict())}"]


def _needed_here(options: RunOptions) -> list[str]:
    """Flags that this machine needs and the user left to xDiT."""
    backend = cpu.attention_backend(options.layout.ring_degree)
    return ["--attention_backend", backend] if backend and not options.attention_backend else []
