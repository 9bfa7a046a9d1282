"""Entry point: picks the command, and turns a user's mistake into one line on one rank with exit code 2."""

from __future__ import annotations

import importlib
import sys

from fastcache_xdit.cli.arguments import is_first_rank
from fastcache_xdit.errors import UsageError
from fastcache_xdit.host.xdit import loading

COMMANDS = {
    "run": "xDiT's own runner, all its flags and models, with --cache fastcache",
    "generate": "images for prompts with any pipeline xDiT has; --compare measures the cache",
    "batch": "thousands of prompts as a job that survives any crash: batch submit, run, status, retry, export",
    "calibrate": "measure a model once, so that stand-ins are fitted and tests mean something",
    "tune": "from a target (speedup, psnr or budget) to a config for --cache_config",
    "bench": "benchmarks: bench peers, approximations, significance, tokens, costs, overhead, batch",
    "report": "one page on the results of bench peers, and Markdown tables",
    "doctor": "what is installed, what this machine can run, and what to do about what does not fit",
}
USAGE = "usage: [torchrun --nproc_per_node N] -m fastcache_xdit COMMAND [options]; COMMAND --help lists its options"


def entry() -> None:
    """Console entry; exits with the command's code, 2 for bad input."""
    sys.exit(main(sys.argv[1:]))


def main(argv: list[str]) -> int:
    """Run one command line and return its exit code."""
    if argv[:1] in (["-h"], ["--help"]):
        print("\n".join([USAGE, *(f"  {name:<10} {about}" for name, about in COMMANDS.items())]))
        return 0
    if not argv:
        return _fail(USAGE)
    if argv[0] not in COMMANDS:
        return _fail(f"unknown command {argv[0]!r}; commands: {', '.join(COMMANDS)}")
    if argv[0] != "doctor":  # it tells what stands in the way of preparing
        loading.prepare()  # before libraries that a command imports read their settings
    try:
        return importlib.import_module(f"fastcache_xdit.cli.{argv[0]}").main(argv[1:])
    except UsageError as error:
        return _fail(str(error))


def _fail(message: str) -> int:
    if is_first_rank():
        print(f"fastcache_xdit: error: {message}", file=sys.stderr)
    return 2
