"""The job store: one SQLite file, in which every item has exactly one state at any time."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fastcache_xdit.errors import UsageError
from fastcache_xdit.files import writable_folder
from fastcache_xdit.jobs.inputs import kept
from fastcache_xdit.jobs.item import Figures, Item, ItemOutcome
from fastcache_xdit.jobs.owner import is_alive
from fastcache_xdit.jobs.recipe import Recipe
from fastcache_xdit.jobs.schema import SCHEMA, TEACHABLE

STATES = ("pending", "running", "done", "failed")
PATIENCE = 60.0  # seconds that a process waits for another one's transaction, which take milliseconds


class Store:
    """A job in a folder: `recipe.json`, `job.sqlite`, `images/`, `inputs/`, and the locks of those who work on it.

    SQLite's write-ahead log needs all processes that open it on one machine, and the folder on a disk of it.

    Raises:
        UsageError: no job was submitted to this folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.recipe = Recipe.load(self.folder)
        self._database = _connect(self.folder)
        if not _is_made(self._database):
            raise UsageError(f"submitting to {self.folder} was interrupted", "submit again")

    @classmethod
    def create(cls, folder: str | Path, recipe: Recipe, items: Sequence[Item]) -> Store:
        """Make a new job: all of it or, where this process dies on the way, none.

        Raises:
            UsageError: the folder cannot be written to, or holds a job.
        """
        writable_folder(folder).mkdir(parents=True, exist_ok=True)
        with contextlib.closing(_connect(Path(folder))) as database, _transaction(database):
            if _is_made(database):
                raise UsageError(
                    f"{folder} holds a job already", f"give another folder, or go on with: batch run {folder}"
                )
            recipe.save(Path(folder))
            for statement in SCHEMA:
                database.execute(statement)
            columns = ", ".join(f":{name}" for name in Item.model_fields)
            rows = (item.model_dump() for item in kept(items, Path(folder)))
            database.executemany(f"INSERT INTO items ({', '.join(Item.model_fields)}) VALUES ({columns})", rows)
        return cls(folder)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def claim(self, owner: str, max_attempts: int) -> list[Item]:
        """Take the first batch in which an item waits, all of it; [] where none waits.

        What waited now runs for `owner`. Items of dead owners are taken back first, and given up after `max_attempts`.
        """
        with _transaction(self._database):
            self._take_back(max_attempts)
            waiting = self._rows("SELECT batch FROM items WHERE state = 'pending' ORDER BY batch LIMIT 1")
            return self._take(owner, waiting[0]["batch"]) if waiting else []

    def claim_teachable(self, owner: str, max_attempts: int, after: int) -> list[Item]:
        """Take the first batch behind `after` that a job learns from, whatever state it is in but failed; [] for none.

        Only what waited of it runs for `owner`, as in `claim`.
        """
        with _transaction(self._database):
            self._take_back(max_attempts)
            found = self._rows(TEACHABLE, after)
            return self._take(owner, found[0]["batch"]) if found else []

    def record(
        self, owner: str, outcome: ItemOutcome, output: str | None, figures: Figures, recorded: bool = False
    ) -> bool:
        """Make an item that runs for `owner` done or failed; return False where it does not run for them."""
        state = "failed" if outcome.error else "done"
        changed = self._database.execute(
            "UPDATE items SET state = ?, owner = NULL, error = ?, output = ?, checksum = ?, finished = ?, seconds = ?, "
            "computed = ?, approximated = ?, compute_ratio = ?, recorded = recorded OR ? WHERE id = ? AND owner = ?",
            (state, outcome.error, output, outcome.checksum, time.time(), *figures, recorded, outcome.id, owner),
        )
        return changed.rowcount == 1

    def release(self, owner: str) -> None:
        """Let the items that run for `owner` wait again, as if they had never been claimed."""
        self._database.execute(
            "UPDATE items SET state = 'pending', owner = NULL, attempts = attempts - 1 WHERE owner = ?", (owner,)
        )

    def note(self, owner: str, trouble: str) -> None:
        """Remember what `owner` died of, for when its items are given up."""
        self._database.execute("UPDATE items SET error = ? WHERE owner = ?", (trouble, owner))

    def retry(self, damaged: Iterable[int]) -> int:
        """Let failed items, and done ones with these ids, wait again; return how many. Bad lines stay failed."""
        reset = "state = 'pending', attempts = 0, error = NULL, output = NULL, checksum = NULL"
        with _transaction(self._database):
            again = self._database.execute(
                f"UPDATE items SET {reset} WHERE state = 'failed' AND batch NOT NULL"
            ).rowcount
            for id in damaged:
                again += self._database.execute(
                    f"UPDATE items SET {reset} WHERE id = ? AND state = 'done'", (id,)
                ).rowcount
        return again

    def items(self, where: str = "TRUE", *values: Any) -> list[Item]:
        """List the items that meet a condition of SQL, in the order of the file."""
        return [Item(**row) for row in self._rows(f"SELECT * FROM items WHERE {where} ORDER BY id", *values)]

    def counts(self) -> dict[str, int]:
        """Count items by state; what a dead owner left counts as pending."""
        counts: Counter[str] = Counter()
        for row in self._rows("SELECT state, owner, COUNT(*) AS count FROM items GROUP BY state, owner"):
            orphaned = row["owner"] and not is_alive(self.folder / "owners", row["owner"])
            counts["pending" if orphaned else row["state"]] += row["count"]
        return {state: counts[state] for state in STATES}

    def is_over(self) -> bool:
        """Tell whether no item waits or runs."""
        counts = self.counts()
        return counts["pending"] + counts["running"] == 0

    def totals(self) -> dict[str, Any]:
        """Sum up done items: block calls, when they `began` and `ended` (Unix time), how many were `recorded`."""
        return self._rows(
            "SELECT SUM(computed) AS computed, SUM(approximated) AS approximated, MIN(started) AS began, "
            "MAX(finished) AS ended, SUM(recorded) AS recorded FROM items WHERE state = 'done'"
        )[0]

    def _take(self, owner: str, batch: int) -> list[Item]:
        self._database.execute(
            "UPDATE items SET state = 'running', owner = ?, attempts = attempts + 1, started = ?, error = NULL "
            "WHERE batch = ? AND state = 'pending'",
            (owner, time.time(), batch),
        )
        return self.items("batch = ?", batch)

    def _take_back(self, max_attempts: int) -> None:
        for row in self._rows("SELECT DISTINCT owner FROM items WHERE owner NOT NULL"):
            if is_alive(self.folder / "owners", row["owner"]):
                continue
            self._database.execute(
                "UPDATE items SET owner = NULL, state = IIF(attempts < :most, 'pending', 'failed'), "
                "error = IIF(attempts < :most, error, 'given up after ' || attempts || ' attempts that ended with "
                "their process: ' || COALESCE(error, 'it was killed')) WHERE owner = :owner",
                {"most": max_attempts, "owner": row["owner"]},
            )

    def _rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        return [dict(row) for row in self._database.execute(query, values)]


def _connect(folder: Path) -> sqlite3.Connection:
    database = sqlite3.connect(folder / "job.sqlite", timeout=PATIENCE, isolation_level=None)
    database.row_factory = sqlite3.Row
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")  # a row that was written survives a loss of power
    return database


def _is_made(database: sqlite3.Connection) -> bool:
    return database.execute("SELECT 1 FROM sqlite_master WHERE name = 'items'").fetchone() is not None


@contextlib.contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")
