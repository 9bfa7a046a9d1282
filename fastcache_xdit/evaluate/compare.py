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
class RankResult:
    """What one rank saw of a job, in one of its two kinds: `cached` or `uncached`."""

    seconds: float = 0.0
    images: dict[int, Any] = field(default_factory=dict)
    counters: Counters = field(default_factory=Counters)
    ledgers: list[tuple[Entry, ...]] = field(default_factory=list)
    agreed: bool = True
    fixes: tuple[str, ...] = ()
    tokens: TokenMaps = field(default_factory=TokenMaps)


@dataclass
class Comparison:
    """One rank's results of both kinds, and the FLOPs of each block in one warm-up call.

    `uncached` stays empty where nothing was compared.
    """

    cached: RankResult = field(default_factory=RankResult)
    uncached: RankResult = field(default_factory=RankResult)
    flops: Counter[str] = field(default_factory=Counter)


def warm_up(engine: Engine, batch: Batch, config: FastCacheConfig, call: dict[str, Any]) -> Counter[str]:
    """Run a few steps of each kind, untimed, so that neither pays for first-time work; return FLOPs by block."""
    few = {**call, "num_inference_steps": min(WARM_UP_STEPS, call["num_inference_steps"])}
    with repaired(engine.pipe), counted(engine.pipe) as flops:
        engine.generate(batch, **few)
    with fastcache(engine.pipe, config):
        engine.generate(batch, **few)
    return flops


def run_cached(
    engine: Engine, batch: Batch, config: FastCacheConfig, call: dict[str, Any], result: RankResult
) -> dict[int, Any]:
    """Generate one batch with the cache on and return this rank's images by index.

    Time, images, counts and decisions are added to `result`.
    """
    observer = None if result.ledgers else result.tokens  # the first request alone is drawn
    with fastcache(engine.pipe, config, observer=observer) as handle:
        images = _timed(engine, batch, call, result)
        report = handle.report()
    result.counters.add(report.counters)
    result.ledgers.append(report.ledger)
    result.agreed = result.agreed and report.ledgers_agree is not False
    result.fixes = report.fixes
    return images


def run_uncached(
    engine: Engine, batch: Batch, call: dict[str, Any], result: RankResult, repair: bool
) -> dict[int, Any]:
    """Generate one batch without the cache and return this rank's images by index, added to `result` as well.

    `repair` cures xDiT's known defects, as the cached run does.
    """
    if not repair:
        return _timed(engine, batch, call, result)
    with repaired(engine.pipe):
        return _timed(engine, batch, call, result)


def compare(
    engine: Engine, batches: Sequence[Batch], config: FastCacheConfig, call: dict[str, Any], keep: Keep
) -> Comparison:
    """Generate every batch in both kinds, one after the other, so that both meet a machine's ups and downs alike."""
    result = Comparison(flops=warm_up(engine, batches[0], config, call))
    for batch in batches:
        for index, image in run_uncached(engine, batch, call, result.uncached, repair=True).items():
            keep("uncached", index, image)
        for index, image in run_cached(engine, batch, config, call, result.cached).items():
            keep("cached", index, image)
    return result


def _timed(engine: Engine, batch: Batch, call: dict[str, Any], result: RankResult) -> dict[int, Any]:
    world.barrier()
    start = time.perf_counter()
    images = engine.generate(batch, **call)
    world.barrier()
    result.seconds += time.perf_counter() - start
    result.images.update(images)
    return images
