"""Measure what the cache itself takes of a cached request's time."""

from __future__ import annotations

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.approx.pooled import pooled
from fastcache_xdit.bench.timed import Shown, Timed
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.host.xdit import world
from fastcache_xdit.learning.calls import RecordedCall
from fastcache_xdit.learning.trajectory import Trajectory
from fastcache_xdit.runtime.output import OutputDriver
from fastcache_xdit.runtime.pilot import Pilot
from fastcache_xdit.runtime.record import Record
from fastcache_xdit.segments.state import SegmentState
from fastcache_xdit.tuning.calls import PipelineCall
from fastcache_xdit.tuning.runner import Runner
from fastcache_xdit.undo import Undo


def overhead(runner: Runner, call: PipelineCall, config: FastCacheConfig) -> dict[str, float]:
    """Measure the cache's parts as shares of the transformer's time where blocks are skipped; of ranks the largest.

    Returns:
        `deciding` (measuring the change and agreeing with the other ranks, waiting for late ones included),
        `standing in` (making the output of skipped blocks), `keeping` (what computed blocks gave), and `all` three.
    """
    shown = Shown()
    with runner.enabled(config, observer=shown) as generate:
        generate(call)  # solves the fits, which a request does once
        with Undo() as undo:
            transformer = Timed(undo, [runner.host.transformer], "__call__")
            deciding = [Timed(undo, [shown.watched.judge], "decide"), Timed(undo, [Record], "decided")]
            standing = Timed(undo, [SegmentState], "stand_in")
            keeping = Timed(undo, [SegmentState], "keep")
            generate(call)
    spent = {
        "deciding": sum(sum(method.seconds) for method in deciding),
        "standing in": sum(standing.seconds),
        "keeping": sum(keeping.seconds),
    }
    return _largest(spent, transformer)


def overhead_of_plan(runner: Runner, call: PipelineCall) -> dict[str, float]:
    """Measure the parts of the default plan as `overhead_of_outputs`, and of a request that is recorded to learn from.

    Returns:
        As `overhead_of_outputs`, and `recording`, in a request that computes all steps.
    """
    planned = overhead_of_outputs(runner, call, FastCacheConfig(learn=0), pooled())
    with runner.enabled(FastCacheConfig(learn=2), pooled()) as generate, Undo() as undo:
        whole = Timed(undo, [runner.host.transformer], "__call__")
        recording = [Timed(undo, [Trajectory], "__call__"), Timed(undo, [RecordedCall], "of")]
        generate(call)
    return planned | _largest({"recording": sum(sum(part.seconds) for part in recording)}, whole)


def overhead_of_outputs(
    runner: Runner, call: PipelineCall, config: FastCacheConfig, calibration: Calibration | None = None
) -> dict[str, float]:
    """Measure parts as shares of the transformer's time where whole calls are skipped; of several ranks the largest.

    Returns:
        `planning` (choosing the steps and solving the weights of a request, when noise levels are new), `standing in`
        and `all`, their sum.
    """
    with runner.enabled(config, calibration) as generate, Undo() as undo:
        transformer = Timed(undo, [runner.host.transformer], "__call__")
        planning = [Timed(undo, [Pilot], name) for name in ("begin", "weights")]
        standing = Timed(undo, [OutputDriver], "handed_over")
        generate(call)
    planned = sum(sum(part.seconds) for part in planning)
    estimates = sum(standing.seconds) - sum(planning[1].seconds)  # weights are asked for there
    return _largest({"planning": planned, "standing in": estimates}, transformer)


def _largest(spent: dict[str, float], transformer: Timed) -> dict[str, float]:
    shares = {name: seconds / sum(transformer.seconds) for name, seconds in spent.items()}
    ranks = world.all_gather_objects(shares | ({"all": sum(shares.values())} if len(shares) > 1 else {}))
    return {name: max(rank[name] for rank in ranks) for name in ranks[0]}
