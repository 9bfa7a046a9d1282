"""A desk: where a replica gets its items and delivers what became of them."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.approx.output import SEGMENT
from fastcache_xdit.files import beside, exchange, force_to_disk, remove_leftovers
from fastcache_xdit.home import Home
from fastcache_xdit.jobs.item import Figures, Item, ItemOutcome
from fastcache_xdit.jobs.learnt import LearntFile
from fastcache_xdit.jobs.owner import Owner
from fastcache_xdit.jobs.recipe import MAX_ATTEMPTS
from fastcache_xdit.jobs.store import Store

PAUSE = 0.2  # seconds between two looks for what others hold, or make
QUIET = 30.0  # seconds of waiting for others, after which it is said
_log = logging.getLogger(__name__)


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
        """Keep what became of the batch, of which others may have taken back what came too late."""
        ...

    def beat(self) -> None:
        """Note that this replica gets on; from any thread."""
        ...

    def abandon(self, trouble: str) -> None:
        """Leave what was not delivered to others, as a process does that dies of `trouble`; from any thread."""
        ...


class StoreDesk:
    """A desk at the store itself. What it holds is free again once it is closed, its process is dead, or it is late.

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
        self._waiting_since: float | None = None
        (store.folder / "images").mkdir(exist_ok=True)
        force_to_disk(store.folder)
        store.leases.beat(self._owner.name)

    def learnt(self, identity: Mapping[str, Any]) -> Learnt:
        """Look into the job's folder, then into the user's, unless the job has begun to learn by itself."""
        if not self._store.leases.take_lesson(self._owner.name):
            self._wait("another process learns for the job")
            return Learnt(None, False)
        found = self._learnt.read()
        if found is None and not self._store.items("recorded"):
            found = self._home.find(identity)
            found = found if found and SEGMENT in found.moments else None
            if found:
                self._learnt.save(found)
        if found:
            self._store.leases.leave_lesson(self._owner.name)
        return Learnt(found, found is None)

    def next_to_record(self, after: int) -> Work:
        """Claim what waits of the next batch that is learnt from."""
        return self._taken(self._store.claim_teachable(self._owner.name, self._max_attempts, after))

    def keep(self, calibration: Calibration) -> None:
        """Write it to the job's folder, and to the user's if it was learnt; not where another learns by now."""
        if not self._store.leases.is_learner(self._owner.name):
            return
        self._learnt.save(calibration)
        self._store.leases.leave_lesson(self._owner.name)
        if "requests" in calibration.facts:
            self._home.keep(calibration)

    def next(self) -> Work:
        """Claim the next batch of the store."""
        return self._taken(self._store.claim(self._owner.name, self._max_attempts))

    def deliver(self, outcomes: Sequence[ItemOutcome], figures: Figures) -> None:
        """Write the image first, then the row, so that a row never names a file that is not there."""
        claimed = {item.id for item in self._store.items("owner = ?", self._owner.name)}
        for outcome in outcomes:
            if outcome.id not in claimed:
                continue
            try:
                self._record(outcome, figures)
            except FileNotFoundError:  # whoever has a late one's item by now has removed what it wrote
                if self._store.items("id = ? AND owner = ?", outcome.id, self._owner.name):
                    raise

    def beat(self) -> None:
        """Note it in the store, over a connection of its own."""
        with contextlib.closing(Store(self._store.folder)) as store:
            store.leases.beat(self._owner.name)

    def close(self) -> None:
        """Give back what was not delivered, as if it had never been taken."""
        self._store.release(self._owner.name)
        self._owner.close()
        self._store.leases.forget(self._owner.name)

    def abandon(self, trouble: str) -> None:
        """Give back what was not delivered; it counts as an attempt."""
        with contextlib.closing(Store(self._store.folder)) as store:
            store.note(self._owner.name, trouble)
            self._owner.close()
            store.leases.forget(self._owner.name)

    def _taken(self, items: Sequence[Item]) -> Work:
        for item in items:
            if item.attempts > 1:  # whoever had it before may have died while writing
                remove_leftovers(self._store.folder, _image(item.id))
        more = not items and not self._store.is_over()
        if more:
            self._wait("other processes hold what is left")
        else:
            self._waiting_since = None
        return Work(tuple(items), bool(items) or more)

    def _wait(self, reason: str) -> None:
        """Say now and then that others are waited for, and for how long at most."""
        now = time.monotonic()
        self._waiting_since = self._waiting_since or now
        if now - self._waiting_since >= QUIET:
            self._waiting_since = now
            lease = self._store.leases.seconds
            _log.warning("fastcache: waiting: %s, and loses it after %g s without progress", reason, lease)

    def _record(self, outcome: ItemOutcome, figures: Figures) -> None:
        recorded = self._store.leases.is_learner(self._owner.name) and not outcome.error
        if outcome.image is None:
            self._store.record(self._owner.name, outcome, None, figures, recorded)
            return
        name = _image(outcome.id) + outcome.suffix
        path = self._store.folder / name
        with beside(path) as partial:
            partial.write_bytes(outcome.image)
            force_to_disk(partial)
            place = functools.partial(exchange, partial, path)
            self._store.record(self._owner.name, outcome, name, figures, recorded, place)


def _image(id: int) -> str:
    """Return where an item's image lies in the job's folder, without its ending."""
    return f"images/{id:06d}"
