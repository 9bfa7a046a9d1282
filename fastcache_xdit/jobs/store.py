"""The job store: one SQLite file, in which every item has exactly one state at any time."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fastcache_xdit.errors import UsageError
from fastcache_xdit.files import writable_folder
from fastcache_xdit.jobs.database import DAMAGED, Database
from fastcache_xdit.jobs.inputs import kept
from fastcache_xdit.jobs.item import Figures, Item, ItemOutcome
from fastcache_xdit.jobs.leases import Leases
from fastcache_xdit.jobs.recipe import Recipe
from fastcache_xdit.jobs.schema import TEACHABLE, WAITING
from fastcache_xdit.options import usage_error

STATES = ("pending", "running", "done", "failed")


class Store:
    """A job in a folder: `recipe.json`, `job.sqlite`, `images/`, `inputs/`, and the locks of those who work on it.

    SQLite's write-ahead log needs all processes that open it on one machine, and the folder on a disk of it.

    Raises:
        UsageError: no job was submitted to this folder; or its files are damaged, or cannot be read or written, from
            every method as well.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.recipe = Recipe.load(self.folder)
        self._database = Database(self.folder)
        if not self._database.is_made:
            raise UsageError(f"submitting to {self.folder} was interrupted", "submit again")
        self.leases = Leases(self._database, self.folder / "owners", self.recipe.lease)

    @classmethod
    def create(cls, folder: str | Path, recipe: Recipe, items: Sequence[Item]) -> Store:
        """Make a new job: all of it or, where this process dies on the way, none.

        Raises:
            UsageError: the folder cannot be written to, or holds a job.
        """
        writable_folder(folder).mkdir(parents=True, exist_ok=True)
        with contextlib.closing(Database(Path(folder), is_new=True)) as database, database.transaction():
            if database.is_made:
                raise UsageError(
                    f"{folder} holds a job already", f"give another folder, or go on with: batch run {folder}"
                )
            recipe.save(Path(folder))
            database.make()
            columns = ", ".join(f":{name}" for name in Item.model_fields)
            for item in kept(items, Path(folder)):
                database.change(
                    f"INSERT INTO items ({', '.join(Item.model_fields)}) VALUES ({columns})", item.model_dump()
                )
        return cls(folder)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def claim(self, owner: str, max_attempts: int) -> list[Item]:
        """Take the first batch in which an item waits, all of it; [] where none waits.

        What waited now runs for `owner`; what was tried in vain before comes last. Items of owners that are dead, or
        late, are taken back first, and given up after `max_attempts`.
        """
        with self._database.transaction():
            self._take_back(max_attempts)
            waiting = self._database.rows(WAITING)
            return self._take(owner, waiting[0]["batch"]) if waiting else []

    def claim_teachable(self, owner: str, max_attempts: int, after: int) -> list[Item]:
        """Take the first batch behind `after` that a job learns from, whatever state it is in but failed; [] for none.

        Only what waited of it runs for `owner`, as in `claim`.
        """
        with self._database.transaction():
            self._take_back(max_attempts)
            found = self._database.rows(TEACHABLE, after)
            return self._take(owner, found[0]["batch"]) if found else []

    def record(
        self,
        owner: str,
        outcome: ItemOutcome,
        output: str | None,
        figures: Figures,
        recorded: bool = False,
        place: Callable[[], None] = lambda: None,
    ) -> bool:
        """Make an item that runs for `owner` done or failed; return False where it does not, or not any more.

        `place` puts its file where it belongs, in the same transaction: a late one never replaces another's file.
        """
        with self._database.transaction():
            if not self._database.rows("SELECT 1 FROM items WHERE id = ? AND owner = ?", outcome.id, owner):
                return False
            place()
            self._database.change(
                "UPDATE items SET state = ?, owner = NULL, error = ?, output = ?, checksum = ?, finished = ?, "
                "seconds = ?, computed = ?, approximated = ?, compute_ratio = ?, recorded = recorded OR ? WHERE id = ?",
                *("failed" if outcome.error else "done", outcome.error, output, outcome.checksum, time.time()),
                *figures,
                *(recorded, outcome.id),
            )
        return True

    def release(self, owner: str) -> None:
        """Let the items that run for `owner` wait again, as if they had never been claimed."""
        self._database.change(
            "UPDATE items SET state = 'pending', owner = NULL, attempts = attempts - 1 WHERE owner = ?", owner
        )

    def note(self, owner: str, trouble: str) -> None:
        """Remember what `owner` died of, for when its items are given up."""
        self._database.change("UPDATE items SET error = ? WHERE owner = ?", trouble, owner)

    def retry(self, damaged: Iterable[int]) -> int:
        """Let failed items, and done ones with these ids, wait again; return how many. Bad lines stay failed."""
        reset = "state = 'pending', attempts = 0, error = NULL, output = NULL, checksum = NULL"
        with self._database.transaction():
            again = self._database.change(f"UPDATE items SET {reset} WHERE state = 'failed' AND batch NOT NULL")
            for id in damaged:
                again += self._database.change(f"UPDATE items SET {reset} WHERE id = ? AND state = 'done'", id)
        return again

    def items(self, where: str = "TRUE", *values: Any) -> list[Item]:
        """List the items that meet a condition of SQL, in the order of the file."""
        columns = ", ".join(Item.model_fields)
        rows = self._database.rows(f"SELECT {columns} FROM items WHERE {where} ORDER BY id", *values)
        try:
            return [Item(**row) for row in rows]
        except ValidationError as error:
            raise UsageError(f"{self._database.path} is damaged ({usage_error(error)})", DAMAGED) from None

    def counts(self) -> dict[str, int]:
        """Count items by state; what a dead or late owner has counts as pending."""
        counts: Counter[str] = Counter()
        for row in self._database.rows("SELECT state, owner, COUNT(*) AS count FROM items GROUP BY state, owner"):
            orphaned = row["owner"] and not self.leases.is_valid(row["owner"])
            counts["pending" if orphaned else row["state"]] += row["count"]
        return {state: counts[state] for state in STATES}

    def is_over(self) -> bool:
        """Tell whether no item waits or runs."""
        counts = self.counts()
        return counts["pending"] + counts["running"] == 0

    def totals(self) -> dict[str, Any]:
        """Sum up done items: block calls, when they `began` and `ended` (Unix time), how many were `recorded`."""
        return self._database.rows(
            "SELECT SUM(computed) AS computed, SUM(approximated) AS approximated, MIN(started) AS began, "
            "MAX(finished) AS ended, SUM(recorded) AS recorded FROM items WHERE state = 'done'"
        )[0]

    def _take(self, owner: str, batch: int) -> list[Item]:
        self.leases.beat(owner)
        self._database.change(
            "UPDATE items SET state = 'running', owner = ?, attempts = attempts + 1, started = ?, error = NULL "
            "WHERE batch = ? AND state = 'pending'",
            *(owner, time.time(), batch),
        )
        return self.items("batch = ?", batch)

    def _take_back(self, max_attempts: int) -> None:
        for row in self._database.rows("SELECT DISTINCT owner FROM items WHERE owner NOT NULL"):
            if self.leases.is_valid(row["owner"]):
                continue
            late = self.leases.is_late(row["owner"])
            end = f"it made no progress for {self.leases.seconds:g} s" if late else "it was killed"
            self._database.change(
                "UPDATE items SET owner = NULL, state = IIF(attempts < :most, 'pending', 'failed'), "
                "error = IIF(attempts < :most, error, 'given up after ' || attempts || ' attempts that ended with "
                "their process: ' || COALESCE(error, :end)) WHERE owner = :owner",
                {"most": max_attempts, "owner": row["owner"], "end": end},
            )
        self.leases.forget_dead()
