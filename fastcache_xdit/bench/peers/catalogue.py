"""List the caches that take part, in the order of tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fastcache_xdit.bench.peers import dbcache, diffusers_hooks, in_tree, own
from fastcache_xdit.bench.peers.peer import Peer


def catalogue(configs: Mapping[str, Path]) -> list[Peer]:
    """Return FastCache with a model's tuned config files, by label, and all other caches."""
    ours = [own.tuned(configs)] if configs else []
    plain = [own.pooled_plan(), own.learnt(), own.fixed_interval(), own.fewer_steps()]
    return [*ours, *plain, *dbcache.peers(), *diffusers_hooks.peers(), *in_tree.peers()]


def unscored() -> list[Peer]:
    """Return the caches whose speed is measured on random weights, where nothing is calibrated.

    FastCache's even masks are a fixed interval, so the other one is left out.
    """
    return [
        own.even_masks(),
        own.pooled_plan(),
        own.fewer_steps(),
        *dbcache.peers(),
        *diffusers_hooks.peers(),
        *in_tree.peers(),
    ]
