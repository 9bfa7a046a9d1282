"""Show how far a job is: a bar while it runs, and a line for its state."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

from fastcache_xdit.jobs.learnt import LearntFile
from fastcache_xdit.jobs.store import Store
from fastcache_xdit.runtime.pilot import described

QUIET = 30.0  # seconds between two lines where no terminal shows a bar


class Bar:
    """A bar over the items of all replicas: images/s, time left, hit rate. One that is not `shown` does nothing."""

    def __init__(self, store: Store | None, shown: bool) -> None:
        self._store = store if shown else None
        if self._store:
            counts = self._store.counts()
            interval = 0.1 if sys.stderr.isatty() else QUIET
            self._bar = tqdm(total=sum(counts.values()), initial=settled(counts), unit="image", mininterval=interval)

    def show(self) -> None:
        """Read the store and draw."""
        if self._store:
            counts = self._store.counts()
            self._bar.set_postfix_str(_postfix(counts, self._store.totals()), refresh=False)
            self._bar.update(settled(counts) - self._bar.n)

    def close(self) -> None:
        """Draw a last time."""
        if self._store:
            self.show()
            self._bar.close()


def describe(counts: dict[str, int], totals: dict[str, Any]) -> str:
    """Put a job's state into one line."""
    parts = [f"{counts['done']} of {sum(counts.values())} images done"]
    parts += [f"{counts[state]} {state}" for state in ("running", "pending", "failed") if counts[state]]
    parts += [f"hit rate {rate:.0%}"] if (rate := hit_rate(totals)) is not None else []
    return ", ".join(parts)


def describe_learnt(store: Store) -> str | None:
    """Say in one line what a job's images are planned by, and what that took; None where nothing is planned."""
    config = store.recipe.config
    if config is None or not store.recipe.learns:
        return None
    known, recorded = LearntFile(store.folder).read(), store.totals()["recorded"]
    parts = [described(config.goal, known) if known else "nothing is learnt yet"]
    parts += [f"{recorded} images were computed in full for it"] if recorded else []
    return "; ".join(parts)


def hit_rate(totals: dict[str, Any]) -> float | None:
    """Compute the share of block calls that were approximated; None without a cache, or before the first image."""
    calls = (totals["computed"] or 0) + (totals["approximated"] or 0)
    return totals["approximated"] / calls if calls else None


def settled(counts: dict[str, int]) -> int:
    """Count the items that need no more work."""
    return counts["done"] + counts["failed"]


def _postfix(counts: dict[str, int], totals: dict[str, Any]) -> str:
    rate = hit_rate(totals)
    parts = ([f"hit rate {rate:.0%}"] if rate is not None else []) + (
        [f"{counts['failed']} failed"] if counts["failed"] else []
    )
    return ", ".join(parts)
