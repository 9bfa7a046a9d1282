"""`calibrations`: what was learnt of models and is kept for the next process: list, show, remove, export."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.cli.arguments import parsed
from fastcache_xdit.cli.options.calibrations import add_export, add_list, add_remove, add_show
from fastcache_xdit.errors import UsageError, one_line
from fastcache_xdit.home import VARIABLE, Home, Kept, kept_at

HEADINGS = ("NAME", "MODEL", "STEPS", "LEARNT", "FROM", "SIZE")
RIGHT = ("STEPS", "SIZE")  # columns of numbers
SAID_APART = ("when", "requests", "steps", "promises")  # facts that have a line of their own


def list_all(argv: list[str]) -> int:
    """Print a table of what is kept, the newest first."""
    as_json, home = parsed(argv, add_list).json, Home()
    kept = home.listed()
    if as_json:
        print(json.dumps({"folder": str(home.calibrations), "calibrations": [_plain(each) for each in kept]}, indent=1))
        return 0
    if not kept:
        print(f"fastcache: no calibrations in {home.calibrations}")
        print(f"  --cache fastcache learns while serving and keeps it there; {VARIABLE} names another folder")
        return 0
    for line in _table([HEADINGS, *map(_row, kept)]):
        print(one_line(line))
    count = "1 calibration" if len(kept) == 1 else f"{len(kept)} calibrations"
    print(f"\n{count}, {_size(sum(each.size for each in kept))} in {home.calibrations}")
    return 0


def show(argv: list[str]) -> int:
    """Print all that a calibration says of itself; one that is not whole is a mistake."""
    path = Home().path_of(parsed(argv, add_show).name)
    calibration, kept = Calibration.load(path), kept_at(path)
    print(one_line(kept.name))
    for line in _laid_out(_said(calibration, kept)):
        print(f"  {one_line(line)}")
    return 0


def remove(argv: list[str]) -> int:
    """Remove calibrations: all that are named, or where one name is wrong, none."""
    options, home = parsed(argv, add_remove), Home()
    if bool(options.names) == options.all:
        raise UsageError("remove takes either names or --all", "calibrations list shows the names")
    names = home.names() if options.all else [home.path_of(name).stem for name in options.names]
    for name in dict.fromkeys(names):
        print(f"fastcache: removed {home.remove(name)}")
    if not names:
        print(f"fastcache: no calibrations in {home.calibrations}")
    return 0


def export(argv: list[str]) -> int:
    """Copy a calibration to a file, for another machine or as `calibration` in a config."""
    options = parsed(argv, add_export)
    print(f"fastcache: -> {Home().export(options.name, options.output)}")
    return 0


def _plain(kept: Kept) -> dict[str, Any]:
    return {**vars(kept), "path": str(kept.path), "when": kept.when}


def _row(kept: Kept) -> tuple[str, ...]:
    model = " + ".join([kept.identity["model"], *kept.identity["adapters"]])
    return kept.name, model, str(kept.steps), kept.when[:10], _source(kept) or "-", _size(kept.size)


def _source(kept: Kept) -> str:
    """Say what a calibration was learnt from: requests that were served, or the prompts of `calibrate`."""
    for fact in ("requests", "prompts"):
        if number := kept.facts.get(fact):
            return f"{number} {fact.removesuffix('s') if number == 1 else fact}"
    return ""


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Align columns, those of numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    marks = [">" if heading in RIGHT else "<" for heading in rows[0]]
    for row in rows:
        cells = (f"{cell:{mark}{width}}" for cell, mark, width in zip(row, marks, widths, strict=True))
        yield "  ".join(cells).rstrip()


def _said(calibration: Calibration, kept: Kept) -> dict[str, Any]:
    """Return what there is to say by label: how it was learnt, of which model, what it promises, other facts."""
    identity, facts, sigmas = kept.identity, kept.facts, calibration.sigmas
    learnt = [kept.when.replace("T", " "), *([f"from {_source(kept)}"] if _source(kept) else [])]
    promises = {f"budget {budget}": f"{decibels} dB" for budget, decibels in facts.get("promises", {}).items()}
    return {
        "file": f"{kept.path}, {_size(kept.size)}",
        "learnt": " ".join(learnt),
        **{part: f"{identity[part]}, config {identity[f'{part}_config']}" for part in ("model", "scheduler")},
        "adapters": identity["adapters"],
        "weight norms": identity["weights"] or "not known",
        "steps": f"{kept.steps}, noise levels {sigmas[0]:.3f} to {sigmas[-1]:.3f}",
        "segments": {name: f"streams {', '.join(streams)}" for name, streams in calibration.moments.items()},
        **({"promises": promises} if promises else {}),
        **{name: value for name, value in facts.items() if name not in SAID_APART},
    }


def _laid_out(value: Any) -> list[str]:
    """Write a value in lines; several by name as two columns, of which the second may have columns of its own."""
    if isinstance(value, Mapping) and value:
        width = max(map(len, value))
        parts = [(name, number, line) for name in value for number, line in enumerate(_laid_out(value[name]))]
        return [f"{'' if number else name:{width}}  {line}" for name, number, line in parts]
    if isinstance(value, list):
        return [", ".join(map(str, value)) or "none"]
    return [f"{value:.4g}" if isinstance(value, float) else str(value)]


def _size(count: float) -> str:
    """Write a number of bytes with a unit."""
    for unit in ("kB", "MB"):
        count /= 1000
        if count < 999.95:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} GB"
