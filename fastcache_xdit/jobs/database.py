"""The SQLite file of a job: opened, brought to this version's form, and asked, with errors in one line."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastcache_xdit.errors import UsageError
from fastcache_xdit.jobs.schema import COLUMNS, OWNERS, SCHEMA, VERSION

NAME = "job.sqlite"
PATIENCE = 60.0  # seconds that a process waits for another one's transaction, which take milliseconds
# By words of SQLite's message: what is wrong, and what to do about it.
TROUBLES = {
    "readonly": ("cannot be written to", "check the folder's permissions and disk; status and export need no writing"),
    "full": ("has no room left on its disk", "free some; the same command goes on"),
    "locked": (f"is held by another process for {PATIENCE:.0f} s", "is one of them stopped? continue or end it"),
    "unable to open": ("cannot be opened", "was the folder moved, or its permissions changed?"),
    "disk I/O": ("cannot be read or written", "was the folder moved? otherwise check its disk"),
}
DAMAGED = "submit the job again; images that were made are still in its folder"


class Database:
    """A job's SQLite file; read only where its folder cannot be written to.

    Args:
        folder: of the job.
        is_new: whether it may have to be made.
    Raises:
        UsageError: it cannot be opened, is damaged, or was made by a later version; also from every other method.
    """

    def __init__(self, folder: Path, is_new: bool = False) -> None:
        self.path = folder / NAME
        self.is_read_only = not is_new and not os.access(folder, os.W_OK)
        with self._told():
            self._connection = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?{self._mode(is_new)}",
                timeout=PATIENCE,
                isolation_level=None,
                uri=True,
            )
            self._connection.row_factory = sqlite3.Row
            if not self.is_read_only:
                self._connection.execute("PRAGMA journal_mode = WAL")
                self._connection.execute("PRAGMA synchronous = FULL")  # a row survives a loss of power
        if self.is_made:
            self._bring_up_to_date()

    @property
    def is_made(self) -> bool:
        """Whether it holds a job."""
        return bool(self.rows("SELECT 1 FROM sqlite_master WHERE name = 'items'"))

    def make(self) -> None:
        """Make the tables of a job, inside a transaction."""
        for statement in SCHEMA:
            self.change(statement)
        self.change(f"PRAGMA user_version = {VERSION}")

    def rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        """Return the rows of an answer by column; values are those of `?`, or one mapping for those with names."""
        with self._told():
            return [dict(row) for row in self._connection.execute(query, _bound(values))]

    def change(self, statement: str, *values: Any) -> int:
        """Carry out a statement and return how many rows it changed."""
        with self._told():
            return self._connection.execute(statement, _bound(values)).rowcount

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Make what happens inside the with block happen at once, or not at all."""
        self.change("BEGIN IMMEDIATE")
        try:
            yield
            self.change("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # some errors have ended it already
                self._connection.execute("ROLLBACK")
            raise

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _mode(self, is_new: bool) -> str:
        if not self.is_read_only:
            return "mode=rwc" if is_new else "mode=rw"
        log = self.path.with_name(f"{NAME}-wal")
        return "mode=ro" if log.exists() and log.stat().st_size else "immutable=1"  # without a log, nobody writes

    def _bring_up_to_date(self) -> None:
        version = self._version()
        if version > VERSION:
            problem = (
                f"{self.path} was made by a later version of fastcache_xdit (format {version}, this has {VERSION})"
            )
            raise UsageError(problem, "update fastcache_xdit")
        if version == VERSION:
            return
        if self.is_read_only:
            raise UsageError(f"{self.path} is of an earlier version, and cannot be written to", "copy the folder first")
        with self.transaction():
            if self._version() < VERSION:  # nobody else was faster
                self._migrate()

    def _migrate(self) -> None:
        """Make of a file without version, whose rows lacked what later ones have, one of version 1."""
        there = {row["name"] for row in self.rows("PRAGMA table_info(items)")}
        for name, kind in COLUMNS.items():
            if name not in there:
                self.change(f"ALTER TABLE items ADD COLUMN {name} {kind}")
        self.change(OWNERS)
        self.change(f"PRAGMA user_version = {VERSION}")

    def _version(self) -> int:
        return self.rows("PRAGMA user_version")[0]["user_version"]

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._trouble(str(error)) from None

    def _trouble(self, message: str) -> UsageError:
        for words, (what, advice) in TROUBLES.items():
            if words in message:
                return UsageError(f"{self.path} {what}", advice)
        return UsageError(f"{self.path} is damaged ({message})", DAMAGED)


def _bound(values: tuple[Any, ...]) -> Any:
    return values[0] if values and isinstance(values[0], dict) else values
