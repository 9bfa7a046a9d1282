"""Turn results into the curves of a figure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from fastcache_xdit.bench.frontier import OTHERS, OURS, Curve, Place, draw
from fastcache_xdit.bench.peers.environment import digest
from fastcache_xdit.bench.peers.frontier import foremost, frontier, rows_by_peer
from fastcache_xdit.bench.peers.study import ResultRow, Study, pace

RUN = "run"  # in the metadata of a picture


def curves(study: Study) -> list[Curve]:
    """Return every cache that ran: its frontier as a line, all its settings as dots."""
    ours = [peer for peer, rows in rows_by_peer(study).items() if rows[0].get("ours")]
    # By the place in all tables, so that a cache has the same look where others before it did not run.
    others = [peer for peer in study.conditions["peers"] if peer not in ours]
    return [_curve(peer, rows, *_look(peer, ours, others)) for peer, rows in rows_by_peer(study).items()]


def _look(peer: str, ours: Sequence[str], others: Sequence[str]) -> tuple[str, str]:
    """Return a colour and a style; a colour that comes a second time is dashed."""
    palette, names = (OURS, ours) if peer in ours else (OTHERS, others)
    number = names.index(peer)
    return palette[number % len(palette)], "-" if number < len(palette) else "--"


def draw_study(study: Study) -> Path:
    """Draw the figure `frontier.png` beside the results; return its path."""
    return draw({study.title: curves(study)}, study.folder / "frontier.png")


def draw_overview(found: Sequence[Study], path: Path) -> Path | None:
    """Draw a panel for each model, of its first study on one rank, with its foremost caches alone.

    Returns the path, or None without such studies. The file names the run that it was drawn from, under `RUN`.
    """
    alone = [study for study in found if study.conditions["ranks"] == 1 and study.ran()]
    panels = {f"{study.conditions['model']}, {study.conditions['steps']} steps": study for study in reversed(alone)}
    drawn = {title: _foremost(panels[title]) for title in sorted(panels)}
    return draw(drawn, path, {RUN: run_of(found)}) if panels else None


def run_of(found: Sequence[Study]) -> str:
    """Return what tells the run of these studies from all others: a digest of their rows."""
    rows = [[study.uncached, *study.rows] for study in found]
    return digest(json.dumps(rows, sort_keys=True).encode())


def _foremost(study: Study) -> list[Curve]:
    return [curve for curve in curves(study) if curve.label in foremost(study)]


def _curve(peer: str, rows: Sequence[ResultRow], colour: str, style: str) -> Curve:
    return Curve(
        peer,
        [_place(row) for row in frontier(rows)],
        colour,
        style,
        bold=bool(rows[0].get("ours")),
        dots=[_place(row) for row in rows],
        tips=[_tip(row) for row in rows],
    )


def _place(row: ResultRow) -> Place:
    return 1 / row["compute"], row["scores"]["psnr_db"]


def _tip(row: ResultRow) -> str:
    psnr = row["scores"]["psnr_db"]
    return f"{row['peer']}: {row['setting']}\n{row['compute']:.1%} of block FLOPs, {psnr:.2f} dB\n{pace(row)}"
