"""The same prompts and seeds with and without the cache, in one run on the same ranks."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.counters import Counters
from fastcache_xdit.evaluate.flops import counted
from fastcache_xdit.evaluate.token_maps import TokenMaps
from fastcache_xdit.host.xdit import world
from fastcache_xdit.host.xdit.engine import Batch, Engine
from fastcache_xdit.parallel.ledger import Entry
from fastcache_xdit.plugin import fastcache, repaired

WARM_UP_STEPS = 4
Keep = Callable[[str, int, Any], None]  # (kind, index, image): called as soon as an image is there


@dataclass
class Run:
    """What one rank saw of a job, in one kind (`cached` or `uncached`)."""

    seconds: float = 0.0
    images: dict[int, Any] = field(default_factory=dict)
    counters: Counters = field(default_factory=Counters)
    ledgers: list[tuple[Entry, ...]] = field(default_factory=list)
    agreed: bool = True
    fixes: tuple[str, ...] = ()
    tokens: TokenMaps = field(default_factory=TokenMaps)


@dataclass
class Comparison:
    """Both kinds, and the FLOPs of each block in one warm-up call; `uncached` is empty where nothing was compared."""

    cached: Run = field(default_factory=Run)
    uncached: Run = field(default_factory=Run)
    flops: Counter[str] = field(default_factory=Counter)


def warm_up(engine: Engine, batch: Batch, config: FastCacheConfig, call: dict[str, Any]) -> Counter[str]:
    """A few steps of each kind, untimed, so that neither pays for first-time work; returns FLOPs by block."""
    few = {**call, "num_inference_steps": min(WARM_UP_STEPS, call["num_inference_steps"])}
    with repaired(engine.pipe), counted(engine.pipe) as flops:
        engine.generate(batch, **few)
    with fastcache(engine.pipe, config):
        engine.generate(batch, **few)
    return flops


def run_cached(engine: Engine, batch: Batch, config: FastCacheConfig, call: dict[str, Any], run: Run) -> dict[int, Any]:
    """One batch with the cache on; its counts and decisions are added to `run`. Returns this rank's images."""
    observer = None if run.ledgers else run.tokens  # the first request alone is drawn
    with fastcache(engine.pipe, config, observer=observer) as handle:
        images = _timed(engine, batch, call, run)
        report = handle.report()
    run.counters.add(report.counters)
    run.ledgers.append(report.ledger)
    run.agreed = run.agreed and report.ledgers_agree is not False
    run.fixes = report.fixes
    return images


def run_uncached(engine: Engine, batch: Batch, call: dict[str, Any], run: Run, repair: bool) -> dict[int, Any]:
    """One batch without the cache; `repair` cures xDiT's known defects as the cached run does."""
    if not repair:
        return _timed(engine, batch, call, run)
    with repaired(engine.pipe):
        return _timed(engine, batch, call, run)


def compare(
    engine: Engine, batches: Sequence[Batch], config: FastCacheConfig, call: dict[str, Any], keep: Keep
) -> Comparison:
    """Every batch in both kinds, one after the other, so that a machine's ups and downs meet both alike."""
    result = Comparison(flops=warm_up(engine, batches[0], config, call))
    for batch in batches:
        for index, image in run_uncached(engine, batch, call, result.uncached, repair=True).items():
            keep("uncached", index, image)
        for index, image in run_cached(engine, batch, config, call, result.cached).items():
            keep("cached", index, image)
    return result


def _timed(engine: Engine, batch: Batch, call: dict[str, Any], run: Run) -> dict[int, Any]:
    world.barrier()
    start = time.perf_counter()
    images = engine.generate(batch, **call)
    world.barrier()
    run.seconds += time.perf_counter() - start
    run.images.update(images)
    return images
