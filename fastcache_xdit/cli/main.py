"""Entry point: picks the command, and turns a user's mistake into one line on one rank with exit code 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from fastcache_xdit.cli import bench, calibrate, generate, run, tune
from fastcache_xdit.cli.arguments import is_first_rank

COMMANDS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "run": (run.main, "xDiT's own runner, all its flags and models, with --cache fastcache"),
    "generate": (generate.main, "images for prompts with any pipeline xDiT has; --compare measures the cache"),
    "calibrate": (calibrate.main, "measure a model once, so that stand-ins are fitted and tests mean something"),
    "tune": (tune.main, "from a target (speedup, psnr or budget) to a config for --cache_config"),
    "bench": (bench.main, "benchmarks: bench approximations, bench significance"),
}
USAGE = "usage: [torchrun --nproc_per_node N] -m fastcache_xdit COMMAND [options]; COMMAND --help lists its options"


def entry() -> None:
    """Console entry; exits with the command's code, 2 for bad input."""
    sys.exit(main(sys.argv[1:]))


def main(argv: list[str]) -> int:
    """Run one command line and return its exit code."""
    if argv[:1] in (["-h"], ["--help"]):
        print("\n".join([USAGE, *(f"  {name:<10} {about}" for name, (_, about) in COMMANDS.items())]))
        return 0
    if not argv:
        return _fail(USAGE)
    if argv[0] not in COMMANDS:
        return _fail(f"unknown command {argv[0]!r}; commands: {', '.join(COMMANDS)}")
    try:
        return COMMANDS[argv[0]][0](argv[1:])
    except ValueError as error:
        if os.environ.get("FASTCACHE_DEBUG"):
            raise
        return _fail(str(error))


def _fail(message: str) -> int:
    if is_first_rank():
        print(f"fastcache_xdit: error: {message}", file=sys.stderr)
    return 2
