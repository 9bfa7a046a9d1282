"""Measure what partial steps cost on this machine, so that none is slower than the whole step that it replaces."""

from __future__ import annotations

import statistics

from fastcache_xdit.bench.timed import Timed
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.host.xdit import world
from fastcache_xdit.tuning.calls import PipelineCall
from fastcache_xdit.tuning.runner import Runner
from fastcache_xdit.undo import Undo

SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 9 / 10)


def costs(runner: Runner, call: PipelineCall) -> dict[float, float]:
    """Measure, for each share of computed tokens, a partial step's time over a whole one's (medians of one request).

    The time holds all that a partial step does: scores and their exchange, taking tokens out and putting them back, and
    attention of few queries to all keys. Of several ranks the one that gains least counts.
    """
    return {share: max(world.all_gather_objects(_cost(runner, call, share))) for share in SHARES}


def _cost(runner: Runner, call: PipelineCall, share: float) -> float:
    steps = call.steps
    mask = "".join("p1"[step % 2 or step < 2] for step in range(steps))
    tokens = {"keep_ratio": share, "bucket": 1, "min_static_ratio": 0}
    config = FastCacheConfig.scheduled(mask, lead_blocks=0, tokens=tokens)
    with runner.enabled(config) as generate, Undo() as undo:
        calls = Timed(undo, [runner.host.transformer], "__call__")
        generate(call)
    per_step = len(calls.seconds) // steps
    whole, partial = (
        [sum(calls.seconds[step * per_step :][:per_step]) for step in range(2, steps) if mask[step] == mark]
        for mark in "1p"
    )
    return statistics.median(partial) / statistics.median(whole)
