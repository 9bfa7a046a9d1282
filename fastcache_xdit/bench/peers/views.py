"""A results folder as one page, and as the tables of BENCHMARKS.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastcache_xdit.bench.peers.chart import HEIGHT, WIDTH, Axes, lines, pace
from fastcache_xdit.bench.peers.frontier import BUDGETS, by_peer, margins
from fastcache_xdit.bench.peers.results import UNCACHED, Row, Study, slug, studies
from fastcache_xdit.evaluate.page import data_url, write_page

SHOWN = {name: BUDGETS[name] for name in ("1/2", "1/3", "1/4", "1/5")}  # with pictures
PICTURES = 2  # of each setting
FARTHEST = 1.25  # a setting's compute over a budget at which it still stands for it


def write_report(folder: Path, page: Path) -> None:
    """The page on all results in and below a folder. Raises UsageError as `studies`."""
    found = studies(folder)
    write_page(page, "peers.html", views=[_view(study) for study in found], kept=kept(found), pace=pace)


def write_markdown(folder: Path, path: Path) -> None:
    """The same as tables in Markdown, pictures by reference, and those of bench speed. UsageError as `studies`."""
    found = studies(folder)
    speeds = [json.loads(each.read_text()) for each in sorted(folder.rglob("speed-*.json"))]
    figures = {study.folder: _reference(study, path.parent) for study in found}
    tables = [(study, margins(study), by_peer(study), figures[study.folder]) for study in found]
    write_page(path, "benchmarks.md", tables=tables, budgets=list(BUDGETS), kept=kept(found), speeds=speeds, pace=pace)


def _reference(study: Study, folder: Path) -> str:
    figure = study.folder.resolve() / "frontier.png"
    return str(figure.relative_to(folder.resolve())) if figure.is_relative_to(folder.resolve()) else str(figure)


def _view(study: Study) -> dict[str, Any]:
    axes = Axes(study.ran())
    drawn = lines(study, axes)
    return {
        "study": study,
        "margins": margins(study),
        "chart": {"width": WIDTH, "height": HEIGHT, "ticks": axes.ticks(), "lines": drawn},
        "legend": sorted(drawn, key=lambda line: not line.ours),
        "budgets": list(BUDGETS),
        "table": by_peer(study),
        "best": {each.budget: max(filter(None, (each.ours, each.best)), default=None) for each in margins(study)},
        "ours": {row["peer"] for row in study.rows if row.get("ours")},
        "shown": {name: _nearest(study, budget) for name, budget in SHOWN.items()},
        "uncached": _pictures(study, UNCACHED, ""),
        "silent": [row for row in study.rows if row["scores"] is None],
    }


def _nearest(study: Study, budget: float) -> list[dict[str, Any]]:
    """Of each cache the setting that comes nearest to a budget, where one comes near; the best first."""
    chosen = []
    for peer in study.peers():
        rows = [row for row in study.ran() if row["peer"] == peer and _apart(row, budget) <= FARTHEST]
        if rows:
            row = min(rows, key=lambda row: (_apart(row, budget), -row["scores"]["psnr_db"]))
            chosen.append({"row": row, "pictures": _pictures(study, row["peer"], row["setting"])})
    return sorted(chosen, key=lambda each: -each["row"]["scores"]["psnr_db"])


def _apart(row: Row, budget: float) -> float:
    return max(row["compute"] / budget, budget / row["compute"])


def _pictures(study: Study, peer: str, setting: str) -> list[str]:
    paths = [study.folder / "images" / f"{slug(peer, setting)}-{number}.webp" for number in range(PICTURES)]
    return [data_url(path.read_bytes(), "webp") for path in paths if path.exists()]


def kept(found: Sequence[Study]) -> list[dict[str, Any]]:
    """What is left of a cache's speedup on several ranks: the speedup there over that on one, by setting."""
    rows = []
    for study in found:
        alone = next((each for each in found if _alone(study, each)), None)
        if alone:
            rows += [
                {"study": study, "row": row, "alone": base, "kept": _median(row) / _median(base)}
                for key, row in _timed(study).items()
                if (base := _timed(alone).get(key))
            ]
    return rows


def _alone(study: Study, other: Study) -> bool:
    same = all(study.conditions[name] == other.conditions[name] for name in ("model", "steps", "dtype", "machine"))
    return same and other.conditions["ranks"] == 1 < study.conditions["ranks"]


def _timed(study: Study) -> Mapping[tuple[str, str], Row]:
    return {(row["peer"], row["setting"]): row for row in study.ran() if row["speedup"]}


def _median(row: Row) -> float:
    return row["speedup"]["median"]
