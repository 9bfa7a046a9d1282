"""Read a results folder back: what was run, under which conditions, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcache_xdit.bench.peers.measurement import NOT_INSTALLED, RAN
from fastcache_xdit.errors import UsageError

CONDITIONS, RESULTS = "conditions.json", "results.jsonl"
UNCACHED = "uncached"

ResultRow = dict[str, Any]  # a line of results.jsonl: a `Measurement` without its pictures, and facts about its peer


@dataclass(frozen=True)
class Study:
    """What a results folder holds.

    Attributes:
        folder: where it lies.
        conditions: of `conditions.json`.
        uncached: the row of the uncached pictures.
        rows: all others, in the order of tables.
    """

    folder: Path
    conditions: dict[str, Any]
    uncached: ResultRow
    rows: Sequence[ResultRow]

    @property
    def title(self) -> str:
        """Return the model and its steps in words; precision and layout where they are not the plain ones."""
        parts = [self.conditions["model"], f"{self.conditions['steps']} steps"]
        if self.conditions["dtype"] != "float32":
            parts.append(self.conditions["dtype"])
        return ", ".join([*parts, self.conditions["layout"]] if self.conditions["ranks"] > 1 else parts)

    def ran(self) -> list[ResultRow]:
        """Return the settings that ran and did something."""
        return [row for row in self.rows if row["status"] == RAN]

    def missing(self) -> list[str]:
        """Return the packages of caches that were not installed, without which no cache is the best other one."""
        return sorted({row["package"] for row in self.rows if row["status"] == NOT_INSTALLED})

    def peers(self) -> list[str]:
        """Return names in the order of tables."""
        return list(dict.fromkeys(row["peer"] for row in self.rows))


def studies(folder: Path) -> list[Study]:
    """Read all results in or below a folder, but for runs that have not measured the uncached pictures yet.

    Raises:
        UsageError: there are none.
    """
    found = [study for path in sorted(folder.rglob(CONDITIONS)) if (study := _study(path.parent)).uncached]
    if not found:
        raise UsageError(f"no results of bench peers in {folder}")
    order = ("model", "steps", "machine", "ranks")
    return sorted(found, key=lambda study: [study.conditions[name] for name in order])


def _study(folder: Path) -> Study:
    rows = {(row["peer"], row["setting"]): row for row in read_rows(folder)}
    uncached = rows.pop((UNCACHED, ""), {})
    conditions = json.loads((folder / CONDITIONS).read_text())
    order = {name: number for number, name in enumerate(conditions["peers"])}
    return Study(
        folder, conditions, uncached, sorted(rows.values(), key=lambda row: order.get(row["peer"], len(order)))
    )


def read_rows(folder: Path) -> Iterator[ResultRow]:
    """Read the lines of the results; one that an interruption cut short is left out."""
    path = folder / RESULTS
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def pace(row: ResultRow) -> str:
    """Say a row's speedup, never without its spread and repetitions; nothing where it was not timed."""
    if not row["speedup"]:
        return ""
    return "{median:.2f}x ({least:.2f} to {most:.2f}, {repetitions} runs)".format(**row["speedup"])
