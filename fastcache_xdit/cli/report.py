"""`report`: a results folder as one page that needs no other file, and as Markdown tables."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastcache_xdit.bench.peers.views import write_markdown, write_report
from fastcache_xdit.cli.arguments import parse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("folder", type=Path, help="results of bench peers, of one model or of many")
    parser.add_argument("--output", type=Path, metavar="FILE.html", help="default: report.html in the folder")
    parser.add_argument("--markdown", type=Path, metavar="FILE.md", help="write tables as well")


def main(argv: list[str]) -> int:
    """Write the page; UsageError where there is nothing to write of."""
    parser = argparse.ArgumentParser(prog="fastcache_xdit report")
    add_arguments(parser)
    options = parse(parser, argv)
    page = options.output or options.folder / "report.html"
    write_report(options.folder, page)
    print(f"fastcache: -> {page}")
    if options.markdown:
        write_markdown(options.folder, options.markdown)
        print(f"fastcache: -> {options.markdown}")
    return 0
