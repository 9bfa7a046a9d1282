"""The caches in xDiT itself: teacache, fbcache, and dbcache (cache-dit behind an adapter)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from fastcache_xdit.bench.peers.peer import Peer, Setting, Subject
from fastcache_xdit.host.xdit.in_tree import in_tree_cache

THRESHOLDS = {
    "teacache": (0.12, 0.18, 0.25, 0.4, 0.6, 0.8),  # those of TeaCache's own page, and 0.18 between two of them
    "fbcache": (0.06, 0.12, 0.25, 0.5),
    "dbcache": (0.08, 0.12, 0.24),
}


@contextlib.contextmanager
def _cached(subject: Subject, method: str, threshold: float) -> Iterator[dict[str, Any]]:
    with in_tree_cache(subject.pipe, method, subject.steps, threshold):
        yield {}


def peers() -> list[Peer]:
    """Return all of xDiT's caches."""
    return [
        Peer(
            f"xDiT {method}",
            "xfuser",
            _cached,
            tuple(Setting(f"threshold {value:g}", {"method": method, "threshold": value}) for value in values),
        )
        for method, values in THRESHOLDS.items()
    ]
