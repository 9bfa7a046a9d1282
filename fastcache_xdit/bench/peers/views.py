"""Write results as one page, and as the tables of BENCHMARKS.md."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastcache_xdit.bench.frontier import chart
from fastcache_xdit.bench.peers.curves import curves, draw_overview
from fastcache_xdit.bench.peers.frontier import BUDGETS, by_peer, foremost, margins
from fastcache_xdit.bench.peers.results import slug
from fastcache_xdit.bench.peers.study import UNCACHED, ResultRow, Study, pace, studies
from fastcache_xdit.evaluate.page import data_url, write_page

SHOWN = {name: BUDGETS[name] for name in ("1/2", "1/3", "1/4", "1/5")}  # with pictures
PICTURES = 2  # of each setting
FARTHEST = 1.25  # a setting's compute over a budget at which it still stands for it
_write = functools.partial(write_page, package="fastcache_xdit.bench.peers")


def write_report(folder: Path, page: Path) -> None:
    """Write the page on all results in and below a folder. Raises UsageError as `studies`."""
    found = studies(folder)
    views = [_view(study, f"study-{number}") for number, study in enumerate(found)]
    _write(page, "peers.html", views=views, kept=speedup_kept(found), pace=pace)


def write_markdown(folder: Path, path: Path) -> None:
    """Write the same as Markdown tables with an overview `frontiers.png` beside them, and tables of bench speed.

    Raises UsageError as `studies`.
    """
    found = studies(folder)
    speeds = [json.loads(file.read_text()) for file in sorted(folder.rglob("speed-*.json"))]
    tables = [(study, margins(study), by_peer(study), _reference(study, path.parent)) for study in found]
    overview = draw_overview(found, path.parent / "frontiers.png")
    values: dict[str, Any] = {"tables": tables, "kept": speedup_kept(found), "speeds": speeds, "overview": overview}
    _write(path, "benchmarks.md", **values, budgets=list(BUDGETS), pace=pace)


def _reference(study: Study, folder: Path) -> str:
    figure, folder = study.folder.resolve() / "frontier.png", folder.resolve()
    return str(figure.relative_to(folder)) if figure.is_relative_to(folder) else str(figure)


def _view(study: Study, salt: str) -> dict[str, Any]:
    at_budgets, drawn = margins(study), curves(study)
    return {
        "study": study,
        "margins": at_budgets,
        "chart": chart(sorted(drawn, key=lambda curve: curve.bold), salt) if drawn else "",
        "legend": sorted(drawn, key=lambda curve: not curve.bold),
        "foremost": foremost(study),
        "budgets": list(BUDGETS),
        "table": by_peer(study),
        "best": {margin.budget: max(filter(None, (margin.ours, margin.best)), default=None) for margin in at_budgets},
        "ours": {row["peer"] for row in study.rows if row.get("ours")},
        "shown": {name: _nearest(study, budget) for name, budget in SHOWN.items()},
        "uncached": _pictures(study, UNCACHED, ""),
        "silent": [row for row in study.rows if row["scores"] is None],
    }


def _nearest(study: Study, budget: float) -> list[dict[str, Any]]:
    """Return each cache's setting nearest to a budget, if it is near enough, with its pictures; the best first."""
    chosen = []
    for peer in study.peers():
        rows = [row for row in study.ran() if row["peer"] == peer and _apart(row, budget) <= FARTHEST]
        if rows:
            row = min(rows, key=lambda row: (_apart(row, budget), -row["scores"]["psnr_db"]))
            chosen.append({"row": row, "pictures": _pictures(study, row["peer"], row["setting"])})
    return sorted(chosen, key=lambda choice: -choice["row"]["scores"]["psnr_db"])


def _apart(row: ResultRow, budget: float) -> float:
    return max(row["compute"] / budget, budget / row["compute"])


def _pictures(study: Study, peer: str, setting: str) -> list[str]:
    paths = [study.folder / "images" / f"{slug(peer, setting)}-{number}.webp" for number in range(PICTURES)]
    return [data_url(path.read_bytes(), "image/webp") for path in paths if path.exists()]


def speedup_kept(found: Sequence[Study]) -> list[dict[str, Any]]:
    """Return, by setting, a cache's speedup on several ranks over its speedup on one."""
    rows = []
    for study in found:
        alone = next((other for other in found if _alone(study, other)), None)
        if alone:
            rows += [
                {"study": study, "row": row, "alone": base, "kept": _median(row) / _median(base)}
                for key, row in _timed(study).items()
                if (base := _timed(alone).get(key))
            ]
    return rows


def _alone(study: Study, other: Study) -> bool:
    """Say whether the other one is the same on one rank."""
    same = all(study.conditions[name] == other.conditions[name] for name in ("model", "steps", "dtype", "machine"))
    return same and other.conditions["ranks"] == 1 < study.conditions["ranks"]


def _timed(study: Study) -> Mapping[tuple[str, str], ResultRow]:
    return {(row["peer"], row["setting"]): row for row in study.ran() if row["speedup"]}


def _median(row: ResultRow) -> float:
    return row["speedup"]["median"]
