"""Who works on a job: an owner's lock proves that its process is there, its beats that it gets on."""

from __future__ import annotations

import time
from pathlib import Path

from fastcache_xdit.errors import UsageError
from fastcache_xdit.jobs.database import DAMAGED, Database
from fastcache_xdit.jobs.owner import is_alive, is_name, remove


class Leases:
    """The owners of a job's items, and of the right to learn for it.

    Beats count as `time.monotonic` does, which all processes of a machine share and no clock that is set disturbs.

    Args:
        database: of the job.
        folder: where the locks lie.
        seconds: without a beat, after which a process that still runs loses what it holds.
    """

    def __init__(self, database: Database, folder: Path, seconds: float) -> None:
        self._database = database
        self._folder = folder
        self.seconds = seconds

    def beat(self, owner: str) -> None:
        """Note that an owner has got on."""
        self._database.change(
            "INSERT INTO owners (name, beat) VALUES (:name, :now) ON CONFLICT (name) DO UPDATE SET beat = :now",
            {"name": owner, "now": time.monotonic()},
        )

    def is_valid(self, owner: str) -> bool:
        """Tell whether an owner keeps what it holds. Raises UsageError for what is no owner's name."""
        if not is_name(owner):
            raise UsageError(f"{self._database.path} is damaged (an owner is no name: {owner[:80]!r})", DAMAGED)
        return is_alive(self._folder, owner) and not self.is_late(owner)

    def is_late(self, owner: str) -> bool:
        """Tell whether an owner's last beat is too long ago."""
        known = self._database.rows("SELECT beat FROM owners WHERE name = ?", owner)
        return bool(known) and time.monotonic() - known[0]["beat"] > self.seconds

    def forget(self, owner: str) -> None:
        """Forget an owner that has left, or is dead, with its lock."""
        self._database.change("DELETE FROM owners WHERE name = ?", owner)
        remove(self._folder, owner)

    def forget_dead(self) -> None:
        """Forget all owners whose processes are gone."""
        for row in self._database.rows("SELECT name FROM owners"):
            if not is_name(row["name"]) or not is_alive(self._folder, row["name"]):
                self._database.change("DELETE FROM owners WHERE name = ?", row["name"])
                if is_name(row["name"]):
                    remove(self._folder, row["name"])

    def take_lesson(self, owner: str) -> bool:
        """Give `owner` the right to learn for the job, unless another one validly has it; return whether it has it."""
        with self._database.transaction():
            others = self._database.rows("SELECT name FROM owners WHERE learns AND name != ?", owner)
            if any(self.is_valid(row["name"]) for row in others):
                return False
            self.beat(owner)
            self._database.change("UPDATE owners SET learns = (name = ?)", owner)
            return True

    def is_learner(self, owner: str) -> bool:
        """Tell whether an owner has the right to learn for the job."""
        return bool(self._database.rows("SELECT 1 FROM owners WHERE learns AND name = ?", owner))

    def leave_lesson(self, owner: str) -> None:
        """Leave the right to learn to others."""
        self._database.change("UPDATE owners SET learns = 0 WHERE name = ?", owner)
