"""`report`: a results folder as one page that needs no other file, and as Markdown tables."""

from __future__ import annotations

from fastcache_xdit.bench.peers.views import write_markdown, write_report
from fastcache_xdit.cli.arguments import own_options
from fastcache_xdit.cli.options.report import ReportOptions, add_arguments
from fastcache_xdit.files import writable_file


def main(argv: list[str]) -> int:
    """Write the page. Raises UsageError where the folder holds no results."""
    options = own_options(ReportOptions, argv, add_arguments)
    page = writable_file(options.output or options.folder / "report.html")
    if options.markdown:
        writable_file(options.markdown)
    write_report(options.folder, page)
    print(f"fastcache: -> {page}")
    if options.markdown:
        write_markdown(options.folder, options.markdown)
        print(f"fastcache: -> {options.markdown}")
    return 0
