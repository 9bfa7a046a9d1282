"""A desk: where a replica gets its items and delivers what became of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from fastcache_xdit.files import force_to_disk, remove_leftovers, write_whole
from fastcache_xdit.jobs.item import Figures, Item, ItemOutcome
from fastcache_xdit.jobs.owner import Owner
from fastcache_xdit.jobs.store import Store

MAX_ATTEMPTS = 5


class Work(NamedTuple):
    """A batch to generate; without items, `more` tells whether others hold items that may come back."""

    items: tuple[Item, ...]
    more: bool


class Desk(Protocol):
    """What the first rank of a replica talks to."""

    def next(self) -> Work | None:
        """Take the next batch, whose items belong to this desk until delivered or until it is gone; None to stop."""
        ...

    def deliver(self, outcomes: Sequence[ItemOutcome], figures: Figures) -> None:
        """Keep what became of the batch."""
        ...


class StoreDesk:
    """A desk at the store itself. What it holds is free again once it is closed or its process is dead.

    Args:
        store: the job.
        max_attempts: an item is given up after so many attempts that ended with the process that made them.
    """

    def __init__(self, store: Store, max_attempts: int = MAX_ATTEMPTS) -> None:
        self._store = store
        self._max_attempts = max_attempts
        self._owner = Owner(store.folder / "owners")
        (store.folder / "images").mkdir(exist_ok=True)
        force_to_disk(store.folder)

    def next(self) -> Work:
        """Claim the next batch of the store."""
        items = self._store.claim(self._owner.name, self._max_attempts)
        for item in items:
            if item.attempts > 1:  # whoever had it before may have died while writing
                remove_leftovers(self._store.folder, _image(item.id))
        return Work(tuple(items), bool(items) or not self._store.is_over())

    def deliver(self, outcomes: Sequence[ItemOutcome], figures: Figures) -> None:
        """Write the image first, then the row, so that a row never names a file that is not there."""
        claimed = {item.id for item in self._store.items("owner = ?", self._owner.name)}
        for outcome in outcomes:
            if outcome.id in claimed:
                self._store.record(self._owner.name, outcome, self._write(outcome), figures)

    def close(self) -> None:
        """Give back what was not delivered, as if it had never been taken."""
        self._store.release(self._owner.name)
        self._owner.close()

    def abandon(self, trouble: str) -> None:
        """Leave what was not delivered to others, as a process does that dies; it counts as an attempt."""
        self._store.note(self._owner.name, trouble)
        self._owner.close()

    def _write(self, outcome: ItemOutcome) -> str | None:
        if outcome.image is None:
            return None
        name = _image(outcome.id)
        write_whole(self._store.folder / name, outcome.image)
        return name


def _image(id: int) -> str:
    """Return where an item's image lies in the job's folder."""
    return f"images/{id:06d}.png"
