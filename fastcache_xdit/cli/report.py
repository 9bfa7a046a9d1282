"""`report`: a results folder as one page that needs no other file, and as Markdown tables."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcache_xdit.bench.peers.views import write_markdown, write_report
from fastcache_xdit.cli.arguments import fill, parse
from fastcache_xdit.files import writable_file


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Options of `report`."""

    folder: Path
    output: Path | None
    markdown: Path | None


def add_arguments(group: Any) -> None:
    """Add the command's options."""
    group.add_argument("folder", type=Path, help="results of bench peers, of one model or of many")
    group.add_argument("--output", type=Path, metavar="FILE.html", help="default: report.html in the folder")
    group.add_argument(
        "--markdown", type=Path, metavar="FILE.md", help="write tables as well, and a figure beside them"
    )


def main(argv: list[str]) -> int:
    """Write the page. Raises UsageError where the folder holds no results."""
    parser = argparse.ArgumentParser(prog="fastcache_xdit report")
    add_arguments(parser)
    options = fill(ReportOptions, parse(parser, argv))
    page = writable_file(options.output or options.folder / "report.html")
    if options.markdown:
        writable_file(options.markdown)
    write_report(options.folder, page)
    print(f"fastcache: -> {page}")
    if options.markdown:
        write_markdown(options.folder, options.markdown)
        print(f"fastcache: -> {options.markdown}")
    return 0
