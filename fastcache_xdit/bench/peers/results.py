"""Write a results folder: one line of JSON for each setting as soon as it is measured, and a few pictures."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from fastcache_xdit.bench.peers.measurement import NOT_INSTALLED, Measurement
from fastcache_xdit.bench.peers.peer import Peer
from fastcache_xdit.bench.peers.score import Scores, as_images
from fastcache_xdit.bench.peers.study import CONDITIONS, RESULTS, ResultRow, Study, read_rows
from fastcache_xdit.errors import UsageError

KEPT_PICTURES = 4
# Conditions that may differ between two runs into one folder.
MAY_DIFFER = ("date", "command", "machine", "sweep", "peers")
SPEEDUP = ("median", "least", "most", "repetitions")


class Results:
    """Collect the results of one model at one number of steps in one layout.

    Raises:
        UsageError: the folder holds results under other conditions.
    """

    def __init__(self, folder: Path, conditions: dict[str, Any]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / CONDITIONS
        before = json.loads(path.read_text()) if path.exists() else conditions
        other = [name for name in conditions if name not in MAY_DIFFER and conditions[name] != before.get(name)]
        if other:
            raise UsageError(f"{folder} holds results with another {', '.join(other)}", "give another --output")
        path.write_text(json.dumps({**before, **conditions}, indent=1) + "\n")
        self._finish_line()

    def _finish_line(self) -> None:
        """End a line that an interruption cut short, so that the next one stands alone."""
        path = self.folder / RESULTS
        if path.exists() and not path.read_text().endswith("\n"):
            with path.open("a") as lines:
                lines.write("\n")

    def measured(self) -> set[tuple[str, str]]:
        """Return the (peer, setting) pairs that are there already; what was not installed is tried again."""
        return {(row["peer"], row["setting"]) for row in read_rows(self.folder) if row["status"] != NOT_INSTALLED}

    def add(self, measurement: Measurement, peer: Peer | None = None) -> None:
        """Append a measurement, and keep its first pictures."""
        row = plain(measurement)
        if peer:
            row |= {"package": peer.package, "ours": peer.ours, "note": peer.note}
        if measurement.pictures is not None:
            self._keep(slug(measurement.peer, measurement.setting), measurement.pictures)
        with (self.folder / RESULTS).open("a") as lines:
            lines.write(json.dumps(row) + "\n")

    def _keep(self, name: str, pictures: torch.Tensor) -> None:
        (self.folder / "images").mkdir(exist_ok=True)
        for number, image in enumerate(as_images(pictures[:KEPT_PICTURES])):
            image.save(self.folder / "images" / f"{name}-{number}.webp", quality=90)


def write_csv(study: Study) -> Path:
    """Write all settings as `results.csv` beside them; return its path."""
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
            values = [scores.get(name) for name in figures]
            lines.writerow([row["peer"], row["setting"], row["status"], row["compute"], *times, *values, row["error"]])
    return path


def slug(peer: str, setting: str) -> str:
    """Return the part of a file's name that stands for a setting."""
    return re.sub(r"[^a-z0-9.]+", "-", f"{peer} {setting}".lower()).strip("-")


def plain(measurement: Measurement) -> ResultRow:
    """Return a measurement as values for JSON, six digits each, without its pictures."""
    names = [field.name for field in fields(measurement) if field.name != "pictures"]
    values = {name: getattr(measurement, name) for name in names}
    values["scores"] = asdict(measurement.scores) if measurement.scores else None
    return _rounded(values)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, (list, tuple)) else value
