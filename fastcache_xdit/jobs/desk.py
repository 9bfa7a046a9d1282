"""A desk: where a replica gets its items and delivers what became of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.approx.output import SEGMENT
from fastcache_xdit.files import force_to_disk, remove_leftovers, write_whole
from fastcache_xdit.home import Home
from fastcache_xdit.jobs.item import Figures, Item, ItemOutcome
from fastcache_xdit.jobs.learnt import LearntFile
from fastcache_xdit.jobs.owner import Owner
from fastcache_xdit.jobs.store import Store

MAX_ATTEMPTS = 5
PAUSE = 0.2  # seconds between two looks for what others hold, or make


class Work(NamedTuple):
    """A batch to generate; without items, `more` tells whether others hold items that may come back."""

    items: tuple[Item, ...]
    more: bool


class Learnt(NamedTuple):
    """What a job has learnt; without it, `is_ours` tells whether whoever asks is the one who learns it for all."""

    calibration: Calibration | None
    is_ours: bool


class Desk(Protocol):
    """What the first rank of a replica talks to; `None` tells it to stop."""

    def learnt(self, identity: Mapping[str, Any]) -> Learnt | None:
        """Return what is known of the model with this identity; the right to learn it is kept until `keep`."""
        ...

    def next_to_record(self, after: int) -> Work | None:
        """Take the next batch behind batch `after` that is learnt from; without items where none is left."""
        ...

    def keep(self, calibration: Calibration) -> None:
        """Keep what was learnt, for all."""
        ...

    def next(self) -> Work | None:
        """Take the next batch, whose items belong to this desk until delivered or until it is gone."""
        ...

    def deliver(self, outcomes: Sequence[ItemOutcome], figures: Figures) -> None:
        """Keep what became of the batch."""
        ...


class StoreDesk:
    """A desk at the store itself. What it holds is free again once it is closed or its process is dead.

    Args:
        store: the job.
        max_attempts: an item is given up after so many attempts that ended with the process that made them.
        home: where the user keeps what was learnt; None for the default.
    """

    def __init__(self, store: Store, max_attempts: int = MAX_ATTEMPTS, home: Home | None = None) -> None:
        self._store = store
        self._max_attempts = max_attempts
        self._owner = Owner(store.folder / "owners")
        self._learnt = LearntFile(store.folder)
        self._home = home or Home()
        (store.folder / "images").mkdir(exist_ok=True)
        force_to_disk(store.folder)

    def learnt(self, identity: Mapping[str, Any]) -> Learnt:
        """Look into the job's folder, then into the user's, unless the job has begun to learn by itself."""
        if not self._learnt.take():
            return Learnt(None, False)
        found = self._learnt.read()
        if found is None and not self._store.items("recorded"):
            found = self._home.find(identity)
            found = found if found and SEGMENT in found.moments else None
            if found:
                self._learnt.save(found)
        if found:
            self._learnt.leave()
        return Learnt(found, found is None)

    def next_to_record(self, after: int) -> Work:
        """Claim what waits of the next batch that is learnt from."""
        return self._taken(self._store.claim_teachable(self._owner.name, self._max_attempts, after))

    def keep(self, calibration: Calibration) -> None:
        """Write it to the job's folder, and to the user's if it was learnt."""
        self._learnt.save(calibration)
        self._learnt.leave()
        if "requests" in calibration.facts:
            self._home.keep(calibration)

    def next(self) -> Work:
        """Claim the next batch of the store."""
        return self._taken(self._store.claim(self._owner.name, self._max_attempts))

    def deliver(self, outcomes: Sequence[ItemOutcome], figures: Figures) -> None:
        """Write the image first, then the row, so that a row never names a file that is not there."""
        claimed = {item.id for item in self._store.items("owner = ?", self._owner.name)}
        for outcome in outcomes:
            if outcome.id in claimed:
                recorded = self._learnt.is_taken and not outcome.error
                self._store.record(self._owner.name, outcome, self._write(outcome), figures, recorded)

    def close(self) -> None:
        """Give back what was not delivered, as if it had never been taken."""
        self._store.release(self._owner.name)
        self._leave()

    def abandon(self, trouble: str) -> None:
        """Leave what was not delivered to others, as a process does that dies; it counts as an attempt."""
        self._store.note(self._owner.name, trouble)
        self._leave()

    def _leave(self) -> None:
        self._learnt.leave()
        self._owner.close()

    def _taken(self, items: Sequence[Item]) -> Work:
        for item in items:
            if item.attempts > 1:  # whoever had it before may have died while writing
                remove_leftovers(self._store.folder, _image(item.id))
        return Work(tuple(items), bool(items) or not self._store.is_over())

    def _write(self, outcome: ItemOutcome) -> str | None:
        if outcome.image is None:
            return None
        name = _image(outcome.id) + outcome.suffix
        write_whole(self._store.folder / name, outcome.image)
        return name


def _image(id: int) -> str:
    """Return where an item's image lies in the job's folder, without its ending."""
    return f"images/{id:06d}"
