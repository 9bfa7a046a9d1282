"""List the caches that take part, in the order of tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fastcache_xdit.bench.peers import dbcache, diffusers_hooks, in_tree, own, solvers
from fastcache_xdit.bench.peers.papers import dpcache, easy_cache, eb_cache, hicache, l2p
from fastcache_xdit.bench.peers.peer import Peer


def catalogue(configs: Mapping[str, Path]) -> list[Peer]:
    """Return FastCache with a model's tuned config files, by label, and all other caches."""
    ours = [own.tuned(configs)] if configs else []
    plain = [own.pooled_plan(), own.learnt(), own.fixed_interval(), own.fewer_steps()]
    calibrated = [l2p.peer(), dpcache.peer()]
    return [*ours, *plain, *_shipped(), *calibrated, *_reimplemented(), *solvers.peers()]


def unscored() -> list[Peer]:
    """Return the caches whose speed is measured on random weights, where nothing is calibrated.

    FastCache's even masks are a fixed interval, so the other one is left out.
    """
    return [
        own.even_masks(),
        own.pooled_plan(),
        own.fewer_steps(),
        *_shipped(),
        *_reimplemented(),
    ]


def _shipped() -> list[Peer]:
    """Return the caches of other packages."""
    return [*dbcache.peers(), *diffusers_hooks.peers(), *in_tree.peers()]


def _reimplemented() -> list[Peer]:
    """Return those caches that we wrote after their papers that are not calibrated."""
    return [hicache.peer(), *easy_cache.peers(), eb_cache.peer()]
