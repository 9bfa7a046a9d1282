"""The same prompts and seeds with and without the cache, in one run on the same ranks."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastcache_xdit.approx.pooled import pooled
from fastcache_xdit.clips import pictured
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.counters import Counters
from fastcache_xdit.evaluate.flops import counted
from fastcache_xdit.evaluate.token_maps import TokenMaps
from fastcache_xdit.handle import Handle
from fastcache_xdit.host.xdit import world
from fastcache_xdit.host.xdit.engine import Batch, Engine
from fastcache_xdit.parallel.ledger import Entry
from fastcache_xdit.plugin import fastcache, repaired
from fastcache_xdit.telling import rehearsal

WARM_UP_STEPS = 4
Progress = Callable[[Sequence[Batch]], Iterator[Batch]]
Keep = Callable[[str, int, Any], None]  # (kind, index, image): called as soon as a finite image is there


@dataclass
class Served:
    """One request, which is a batch of prompts, as one rank saw it.

    Attributes:
        seconds: wall time, with that of learning where it happened inside this request.
        images: the images that this rank holds, by index.
        counters: counts of this request.
        ledger: its decisions.
        is_recorded: it was computed in full, to learn from.
        not_finite: indices of images that are not finite; they are black, and not kept.
    """

    seconds: float = 0.0
    images: dict[int, Any] = field(default_factory=dict)
    counters: Counters = field(default_factory=Counters)
    ledger: tuple[Entry, ...] = ()
    is_recorded: bool = False
    not_finite: tuple[int, ...] = ()

    @property
    def is_in_full(self) -> bool:
        """Whether no step was skipped, not even for some of the tokens."""
        return not any(entry.skip or entry.partial for entry in self.ledger)


@dataclass
class RankResult:
    """What one rank saw of a job, in one of its two kinds: `cached` or `uncached`.

    Attributes:
        served: the requests, in order.
        agreed: no request ended with ledgers that differ.
        fixes: defects of xDiT that were cured.
        plan: what was used at the end, in one line; empty where nothing is planned.
        promise: PSNR in dB that the plan promises for this number of steps; None where nothing is known.
        seconds_learning: wall time that learning took, a part of that of the requests.
        tokens: of the first request.
    """

    served: list[Served] = field(default_factory=list)
    agreed: bool = True
    fixes: tuple[str, ...] = ()
    plan: str = ""
    promise: float | None = None
    seconds_learning: float = 0.0
    tokens: TokenMaps = field(default_factory=TokenMaps)


@dataclass
class Comparison:
    """One rank's results of both kinds, and the FLOPs of each block in one warm-up call.

    `uncached` stays empty where nothing was compared; `cached` is all that there is where no cache was asked for.
    """

    cached: RankResult = field(default_factory=RankResult)
    uncached: RankResult = field(default_factory=RankResult)
    flops: Counter[str] = field(default_factory=Counter)


def run_cached(
    engine: Engine,
    batches: Sequence[Batch],
    config: FastCacheConfig,
    call: Mapping[str, Any],
    keep: Keep,
    compares: bool = False,
    progress: Progress = iter,
) -> Comparison:
    """Generate every batch with one cache that stays on, so that it learns from batch to batch.

    Args:
        engine: the pipeline.
        batches: what to generate.
        config: of the cache.
        call: arguments of the pipeline.
        keep: takes each image.
        compares: generate every batch without the cache as well, right before, so that both meet a machine's ups and
            downs alike. xDiT's known defects are cured in both.
        progress: gives one batch after the other, and shows how far it is.
    """
    result = Comparison(flops=_warm_up(engine, batches[0], config, call)) if compares else Comparison()
    with fastcache(engine.pipe, config, observer=result.cached.tokens) as handle:
        for batch in progress(batches):
            if compares:
                with handle.paused():
                    result.uncached.served.append(_served(engine, batch, call, keep, "uncached"))
            _serve_cached(engine, batch, call, keep, handle, result.cached)
        _conclude(handle, result.cached, call["num_inference_steps"])
    return result


def run_plain(
    engine: Engine, batches: Sequence[Batch], call: Mapping[str, Any], keep: Keep, progress: Progress = iter
) -> Comparison:
    """Generate every batch as xDiT does, without a cache and with its defects; arguments as in `run_cached`."""
    result = Comparison()
    result.cached.served += [_served(engine, batch, call, keep, "cached") for batch in progress(batches)]
    return result


def _warm_up(engine: Engine, batch: Batch, config: FastCacheConfig, call: Mapping[str, Any]) -> Counter[str]:
    """Run a few steps of each kind, untimed, so that neither pays for first-time work; return FLOPs by block.

    Nothing is learnt from so few steps, and nothing is said of what is known of the model.
    """
    known = pooled() if config.test == "plan" else None
    few = {**call, "num_inference_steps": min(WARM_UP_STEPS, call["num_inference_steps"])}
    with repaired(engine.pipe), counted(engine.pipe) as flops:
        engine.generate(batch, **few)
    with rehearsal(), fastcache(engine.pipe, config.model_copy(update={"learn": 0}), calibration=known):
        engine.generate(batch, **few)
    return flops


def _serve_cached(
    engine: Engine, batch: Batch, call: Mapping[str, Any], keep: Keep, handle: Handle, result: RankResult
) -> None:
    """Generate one batch with the cache on, and add what this rank saw of it to `result`."""
    is_recorded = handle.is_recording
    handle.reset()  # counts are of this request alone
    served = _served(engine, batch, call, keep, "cached")
    report = handle.report()
    served.counters.add(report.counters)
    served.ledger, served.is_recorded = report.ledger, is_recorded
    result.served.append(served)
    result.agreed = result.agreed and report.ledgers_agree is not False
    result.tokens.is_over = True  # the first request alone is drawn


def _conclude(handle: Handle, result: RankResult, steps: int) -> None:
    learnt = handle.learnt
    result.fixes, result.plan, result.seconds_learning = handle.report().fixes, handle.plan, handle.seconds_learning
    result.promise = handle.promise if learnt and len(learnt.sigmas) == steps else None


def _served(engine: Engine, batch: Batch, call: Mapping[str, Any], keep: Keep, kind: str) -> Served:
    world.barrier()
    start = time.perf_counter()
    pixels = engine.generate(batch, **call, output_type="pt")
    images = {index: pictured(values, engine.fps) for index, values in pixels.items()}
    world.barrier()
    served = Served(time.perf_counter() - start, images)
    served.not_finite = tuple(index for index, values in pixels.items() if not values.isfinite().all())
    for index, image in images.items():
        if index not in served.not_finite:
            keep(kind, index, image)
    return served
