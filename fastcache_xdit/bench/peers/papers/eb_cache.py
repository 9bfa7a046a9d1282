"""EB-Cache (arXiv 2503.07120): attention and MLPs reused by a table, and an output scaled against exposure bias."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from math import exp
from typing import Any

from fastcache_xdit.bench.peers.papers.forecast import History, reuse
from fastcache_xdit.bench.peers.papers.sublayers import Kind, Sublayers
from fastcache_xdit.bench.peers.peer import Peer, Setting, Subject

TURN, HIGH, LOW, STEEPNESS = 0.4, 0.98, 0.96, 5  # t0, b_h, b_l of the paper, and the rate of its exponentials
# Every how many steps attention is computed, and MLPs, so that a step computes both, reuses attention, or reuses both.
INTERVALS = ((2, 1), (2, 2), (4, 2), (3, 3), (6, 3), (4, 4), (5, 5))


def exposure_factor(time: float) -> float:
    """Return b at a time from 1 (noise) to 0."""
    if time >= TURN:
        return HIGH + (1 - HIGH) * exp(-STEEPNESS * (1 - time) / (1 - TURN))
    return LOW + (HIGH - LOW) * exp(STEEPNESS * (time - TURN) / (1 - TURN))


@contextlib.contextmanager
def _cached(subject: Subject, attention: int, mlp: int, power: int) -> Iterator[dict[str, Any]]:
    intervals: dict[Kind, int] = {"attention": attention, "mlp": mlp}
    scheduler = subject.pipe.scheduler

    def computes(kind: Kind, step: int) -> bool:
        return step % intervals[kind] == 0

    def scale(step: int) -> float:
        return exposure_factor(float(scheduler.timesteps[step]) / scheduler.config.num_train_timesteps) ** power

    with Sublayers(computes, lambda: History(reuse, length=1)).running(subject, scale):
        yield {}


def peer() -> Peer:
    """Return EB-Cache over its intervals, the output multiplied by b as in the paper, and divided as in its code."""
    settings = tuple(
        Setting(f"attention {attention}, MLP {mlp}, {word} b", {"attention": attention, "mlp": mlp, "power": power})
        for attention, mlp in INTERVALS
        for word, power in (("times", 1), ("divided by", -1))
    )
    note = (
        "our implementation after arXiv 2503.07120: its table could not be read, so there is one interval each for "
        "attention and MLPs; b scales the transformer's output"
    )
    return Peer("EB-Cache (reimplemented)", "fastcache_xdit", _cached, settings, note=note)
