"""Records a job's first batches and learns from them alone, whatever the user's folder has by then."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.approx.pooled import pooled
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.handle import Handle
from fastcache_xdit.home import Home


class Nowhere(Home):
    """A home that has nothing and keeps nothing: what a job uses is in its own folder."""

    def find(self, identity: Mapping[str, Any]) -> Calibration | None:
        """Find nothing."""
        return None

    def keep(self, calibration: Calibration) -> Path | None:
        """Keep nothing."""
        return None


@dataclass(frozen=True)
class Recording:
    """The batches that are recorded under one handle.

    Args:
        handle: of a cache with a config of `unlimited`.
        wanted: number of batches to learn from.
        identity: of the model.
        restore: makes the model what it was before the first batch.
    """

    handle: Handle
    wanted: int
    identity: Mapping[str, Any]
    restore: Callable[[], None]

    @property
    def wants_more(self) -> bool:
        """Whether more batches are to be recorded; those that failed do not count."""
        return self.handle.recorded < self.wanted

    def begun(self) -> Handle:
        """Return the handle for the next batch, with counts from 0."""
        self.handle.reset()
        return self.handle

    def learnt(self) -> Calibration:
        """Learn, on every rank; with too few batches, return what is known of other models, as if of this one."""
        if self.wants_more or not self.wanted:
            return pooled_as(self.identity)
        self.restore()
        self.handle.learn()
        assert self.handle.learnt
        return self.handle.learnt


def pooled_as(identity: Mapping[str, Any]) -> Calibration:
    """Return what is known of other models, as if it were of the model with this identity."""
    return replace(pooled(), identity=dict(identity))


def unlimited(config: FastCacheConfig) -> FastCacheConfig:
    """Return a config that records until it is told to learn."""
    return config.model_copy(update={"learn": sys.maxsize})


def in_full(config: FastCacheConfig) -> FastCacheConfig:
    """Return a config that computes all steps, as while they are recorded."""
    return config.model_copy(update={"budget": 1.0, "speedup": None, "psnr": None})
