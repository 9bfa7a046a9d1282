"""Decisions of a job as rows of cells, for its report: all requests, and the first one block by block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastcache_xdit.evaluate.learning import switch
from fastcache_xdit.evaluate.summary import View, requests_of
from fastcache_xdit.parallel.ledger import Entry

MOST_REQUESTS = 24

Cell = dict[str, Any]


def requests(views: Sequence[View], figures: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one group of rows for each set of ranks that agree, with a row for each of the first requests."""
    since = switch(views)
    groups = []
    for view in (view for rank, view in enumerate(views) if view.agreeing[0] == rank):
        served = requests_of(view, "cached")[:MOST_REQUESTS]
        if not all(request.ledger for request in served):
            continue
        rows: list[dict[str, Any]] = [
            {
                "number": number + 1,
                "cells": _summed(request.ledger),
                "switches": number == since,
                "is_recorded": request.is_recorded,
                "result": "exact" if request.is_in_full else _psnr(views, number, figures),
                "seconds": _seconds(views, number, figures["learning"] if number + 1 == since else None),
            }
            for number, request in enumerate(served)
        ]
        left_out = len(requests_of(view, "cached")) - len(rows)
        in_part = any(cell and cell["choice"] == "partial" for row in rows for cell in row["cells"])
        groups.append({"ranks": _ranks(view), "rows": rows, "left_out": left_out, "in_part": in_part})
    return groups


def first_request(views: Sequence[View]) -> list[dict[str, Any]]:
    """Return the first request's decisions, by segment, where there are several: a grid for each set of ranks."""
    grids = []
    for rank, view in enumerate(views):
        served = requests_of(view, "cached")
        if view.agreeing[0] == rank and served and len(rows := _rows(served[0].ledger)) > 1:
            grids.append({"ranks": _ranks(view), "rows": rows})
    return grids


def _ranks(view: View) -> str:
    return ", ".join(map(str, view.agreeing))


def _psnr(views: Sequence[View], number: int, figures: dict[str, Any]) -> str:
    """The mean over one request's images."""
    each = figures.get("psnr_db_each")
    indices = {index for view in views for index in requests_of(view, "cached")[number].images}
    return f"{sum(each[index] for index in indices) / len(indices):.1f} dB" if each else ""


def _seconds(views: Sequence[View], number: int, learning: dict[str, Any] | None) -> str:
    """Wall time of a request without and with the cache, without the `learning` in it."""
    kinds = [kind for kind in ("uncached", "cached") if requests_of(views[0], kind)]
    times = [max(requests_of(view, kind)[number].seconds for view in views) for kind in kinds]
    times[-1] -= learning["seconds"] if learning else 0.0
    return " \N{RIGHTWARDS ARROW} ".join(f"{seconds:.1f} s" for seconds in times)


def _summed(ledger: Sequence[Entry]) -> list[Cell | None]:
    """One cell for each step: what all of the step's decisions have in common, else partial."""
    steps: list[list[Entry]] = [[] for _ in range(1 + max(entry.step for entry in ledger))]
    for entry in ledger:
        steps[entry.step].append(entry)
    return [_cell(entries) if entries else None for entries in steps]


def _cell(entries: Sequence[Entry]) -> Cell:
    choices = {_choice(entry) for entry in entries}
    choice = choices.pop() if len(choices) == 1 else "partial"
    reasons = ", ".join(dict.fromkeys(entry.reason for entry in entries))
    told = f"step {entries[0].step}: {choice} ({reasons})"
    if len(entries) == 1 and (entries[0].change or entries[0].predicted_error):
        told += f", change {entries[0].change:.3g}, predicted error {entries[0].predicted_error:.3g}"
    if len(entries) == 1 and entries[0].tokens:
        told += f", {entries[0].tokens} tokens"
    return {"choice": choice, "told": told}


def _choice(entry: Entry) -> str:
    return "skipped" if entry.skip else "partial" if entry.partial else "computed"


def _rows(ledger: Sequence[Entry]) -> list[dict[str, Any]]:
    """Decisions by segment (and PipeFusion patch, where patches decide), each in step order."""
    steps = 1 + max((entry.step for entry in ledger), default=0)
    rows: dict[str, list[Cell | None]] = {}
    for entry in ledger:
        name = entry.segment if entry.patch is None else f"{entry.segment}, patch {entry.patch}"
        rows.setdefault(name, [None] * steps)[entry.step] = _cell([entry])
    return [{"name": name, "cells": cells} for name, cells in rows.items()]
