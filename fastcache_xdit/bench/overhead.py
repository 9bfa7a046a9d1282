"""What the cache itself takes of the time of a cached request."""

from __future__ import annotations

from fastcache_xdit.bench.timed import Timed
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.host.xdit import world
from fastcache_xdit.host.xdit.engine import Batch
from fastcache_xdit.segments.state import SegmentState
from fastcache_xdit.tuning.runner import Runner
from fastcache_xdit.undo import Undo


def overhead(runner: Runner, batch: Batch, config: FastCacheConfig) -> dict[str, float]:
    """Shares of the time that a cached request spends in the transformer; of several ranks the largest.

    Returns:
        `deciding` (measuring the change and agreeing with the other ranks, their being late included), `standing in`
        (giving skipped blocks' output), `learning` (remembering what computed blocks gave), and `all` of them.
    """
    with runner.enabled(config) as watched:
        watched.generate(batch)  # solves the fits, which a request does once
        with Undo() as undo:
            whole = Timed(undo, [runner.host.transformer], "forward")
            deciding = Timed(undo, [watched.handle.driver.judge], "decide")
            standing = Timed(undo, [SegmentState], "stand_in")
            learning = [Timed(undo, [SegmentState], name) for name in ("learn", "keep")]
            watched.generate(batch)
    spent = {
        "deciding": sum(deciding.seconds),
        "standing in": sum(standing.seconds),
        "learning": sum(sum(each.seconds) for each in learning),
    }
    shares = {name: seconds / sum(whole.seconds) for name, seconds in spent.items()}
    everyone = world.all_gather_objects(shares | {"all": sum(shares.values())})
    return {name: max(each[name] for each in everyone) for name in everyone[0]}
