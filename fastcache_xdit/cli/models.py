"""`models`: the transformer classes that were tried, what of the cache works with each, and why not."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from fastcache_xdit.cli.arguments import own_options
from fastcache_xdit.cli.options.models import ModelsOptions, add_arguments
from fastcache_xdit.errors import UsageError
from fastcache_xdit.host.xdit.world import is_first_rank
from fastcache_xdit.models.tried import Tried, all_tried, versions

MOST_NEAR = 5  # classes that are suggested
WIDTH = 125  # columns that the table needs, also where there is no terminal


def main(argv: list[str]) -> int:
    """Print the table, or all that is known of one class."""
    options = own_options(ModelsOptions, argv, add_arguments)
    shown = {options.name: _named(options.name)} if options.name else all_tried()
    if not is_first_rank():
        return 0
    if options.json:
        print(json.dumps({"versions": versions(), "classes": {name: asdict(row) for name, row in shown.items()}}))
    elif options.name:
        print(*_described(options.name, shown[options.name]), sep="\n")
    else:
        _print_table(shown.items())
    return 0


def _named(name: str) -> Tried:
    tried = all_tried()
    if name in tried:
        return tried[name]
    close = _near(name, tried)
    raise UsageError(
        f"{name} was not tried",
        f"did you mean {' or '.join(close)}?" if close else "most models work all the same: enable it and see",
    )


def _near(name: str, tried: Iterable[str]) -> list[str]:
    """Return classes that have these letters in their name, or one that is spelt much like it."""
    inside = [other for other in tried if name.lower() in other.lower()]
    spelt = {other.lower(): other for other in tried}
    return inside[:MOST_NEAR] or [spelt[near] for near in difflib.get_close_matches(name.lower(), spelt, n=MOST_NEAR)]


def _print_table(rows: Iterable[tuple[str, Tried]]) -> None:
    console = Console(highlight=False, width=max(Console().width, WIDTH))
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("class", "cached", "skips by", "layouts", "in part"):
        table.add_column(heading, no_wrap=heading == "class")
    for name, row in rows:
        parts = (
            ", ".join(row.granularities) or row.why_not,
            ", ".join(row.layouts) or "-",
            "yes" if row.partial else "-",
        )
        table.add_row(name, "no" if row.why_not else "yes", *parts)
    console.print(table)
    cached = sum(not row.why_not for row in all_tried().values())
    print(f"\n{cached} of {len(all_tried())} classes are cached; tried as tiny models with {_packages()}.")
    print("A class that is not listed is cached as well: what its blocks are is found out in its first call.")


def _described(name: str, row: Tried) -> Iterator[str]:
    yield f"{name}: {f'not cached: {row.why_not}' if row.why_not else 'cached'}"
    yield from _lines("pipelines", [", ".join(row.pipelines)])
    yield from _lines("skips by", [", ".join(row.granularities)])
    yield from _lines("layouts", [", ".join(row.layouts)])
    yield from _lines("not", [f"{layout}: {reason}" for layout, reason in row.refused.items()])
    yield from _lines("in part", ["yes"] if row.partial else [])
    yield from _lines("blocks", [f"{name}: {streams}" for name, streams in row.streams.items()])
    yield from _lines("always computed", [f"{name}: {reason}" for name, reason in row.computed.items()])


def _lines(label: str, values: Iterable[str]) -> Iterator[str]:
    for number, value in enumerate(value for value in values if value):
        yield f"  {'' if number else label:16} {value}"


def _packages() -> str:
    return ", ".join(f"{package} {version}" for package, version in versions().items())
