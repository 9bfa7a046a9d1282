"""A results folder: what was run, one line of JSON for each setting as soon as it is known, and a few pictures."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from fastcache_xdit.bench.peers.measure import RAN, Outcome
from fastcache_xdit.bench.peers.peer import Peer
from fastcache_xdit.bench.peers.score import Scores, as_images
from fastcache_xdit.errors import UsageError

CONDITIONS, RESULTS = "conditions.json", "results.jsonl"
UNCACHED = "uncached"
KEPT_PICTURES = 4
# What may differ between two runs that go into one folder.
PASSING = ("date", "command", "machine", "sweep")
SPEEDUP = ("median", "least", "most", "repetitions")

Row = dict[str, Any]


class Results:
    """One model at one number of steps in one layout.

    Raises:
        UsageError: the folder holds results under other conditions.
    """

    def __init__(self, folder: Path, conditions: dict[str, Any]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / CONDITIONS
        known = json.loads(path.read_text()) if path.exists() else conditions
        other = [name for name in conditions if name not in PASSING and conditions[name] != known.get(name)]
        if other:
            raise UsageError(f"{folder} holds results with another {', '.join(other)}", "give another --output")
        path.write_text(json.dumps({**known, **conditions}, indent=1) + "\n")
        self._finish_line()

    def _finish_line(self) -> None:
        """Part a line that an interruption cut short from the next one."""
        path = self.folder / RESULTS
        if path.exists() and not path.read_text().endswith("\n"):
            with path.open("a") as lines:
                lines.write("\n")

    def known(self) -> set[tuple[str, str]]:
        """Which (peer, setting) are there already."""
        return {(row["peer"], row["setting"]) for row in read_rows(self.folder)}

    def add(self, outcome: Outcome, peer: Peer | None = None) -> None:
        """Keep an outcome, and its first pictures."""
        row = plain(outcome)
        if peer:
            row |= {"package": peer.package, "ours": peer.ours, "note": peer.note}
        if outcome.pictures is not None:
            self._keep(slug(outcome.peer, outcome.setting), outcome.pictures)
        with (self.folder / RESULTS).open("a") as lines:
            lines.write(json.dumps(row) + "\n")

    def _keep(self, name: str, pictures: torch.Tensor) -> None:
        (self.folder / "images").mkdir(exist_ok=True)
        for number, image in enumerate(as_images(pictures[:KEPT_PICTURES])):
            image.save(self.folder / "images" / f"{name}-{number}.webp", quality=90)


@dataclass(frozen=True)
class Study:
    """What a results folder holds; `rows` in the order of tables, the uncached one apart."""

    folder: Path
    conditions: dict[str, Any]
    uncached: Row
    rows: Sequence[Row]

    @property
    def title(self) -> str:
        """Model, steps, and where they are not the plain ones precision and layout, in words."""
        known = self.conditions
        parts = [known["model"], f"{known['steps']} steps"]
        parts += [known["dtype"]] if known["dtype"] != "float32" else []
        return ", ".join([*parts, known["layout"]] if known["ranks"] > 1 else parts)

    def ran(self) -> list[Row]:
        """Settings that ran and did something."""
        return [row for row in self.rows if row["status"] == RAN]

    def peers(self) -> list[str]:
        """Names in the order of tables."""
        return list(dict.fromkeys(row["peer"] for row in self.rows))


def studies(folder: Path) -> list[Study]:
    """All results in or below a folder; a run that has not measured the uncached pictures yet is left out.

    Raises:
        UsageError: there are none.
    """
    every = [_study(path.parent) for path in sorted(folder.rglob(CONDITIONS))]
    found = [study for study in every if study.uncached]
    if not found:
        raise UsageError(f"no results of bench peers in {folder}")
    order = ("model", "steps", "machine", "ranks")
    return sorted(found, key=lambda study: [study.conditions[name] for name in order])


def _study(folder: Path) -> Study:
    rows = {(row["peer"], row["setting"]): row for row in read_rows(folder)}
    uncached = rows.pop((UNCACHED, ""), {})
    order = json.loads((folder / CONDITIONS).read_text())["peers"]
    listed = sorted(rows.values(), key=lambda row: order.index(row["peer"]) if row["peer"] in order else len(order))
    return Study(folder, json.loads((folder / CONDITIONS).read_text()), uncached, listed)


def read_rows(folder: Path) -> Iterator[Row]:
    """Lines of the results; one that an interruption cut short is left out."""
    path = folder / RESULTS
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def write_csv(study: Study) -> Path:
    """All settings as `results.csv` beside them."""
    path = study.folder / "results.csv"
    figures = [field.name for field in fields(Scores)]
    with path.open("w", newline="") as stream:
        lines = csv.writer(stream)
        lines.writerow(
            ["peer", "setting", "status", "compute", *(f"speedup_{part}" for part in SPEEDUP), *figures, "error"]
        )
        for row in study.rows:
            pace, scores = row["speedup"] or {}, row["scores"] or {}
            times = [pace.get(part) for part in SPEEDUP]
            known = [scores.get(name) for name in figures]
            lines.writerow([row["peer"], row["setting"], row["status"], row["compute"], *times, *known, row["error"]])
    return path


def slug(peer: str, setting: str) -> str:
    """A file name's part for a setting."""
    return re.sub(r"[^a-z0-9.]+", "-", f"{peer} {setting}".lower()).strip("-")


def plain(outcome: Outcome) -> Row:
    """An outcome as values for JSON, six digits each."""
    values = {field.name: getattr(outcome, field.name) for field in fields(outcome) if field.name != "pictures"}
    values["scores"] = asdict(outcome.scores) if outcome.scores else None
    return _rounded(values)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, (list, tuple)) else value
