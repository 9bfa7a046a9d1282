"""HiCache (arXiv 2508.16984): forecasts by scaled Hermite polynomials, in the place of TaylorSeer's powers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from math import factorial
from typing import Any

from fastcache_xdit.bench.peers.papers.forecast import History
from fastcache_xdit.bench.peers.papers.last_block import LastBlock
from fastcache_xdit.bench.peers.papers.sublayers import Sublayers
from fastcache_xdit.bench.peers.peer import Peer, Setting, Subject, shares
from fastcache_xdit.decision.schedule import uniform_mask

ORDER, SIGMA = 2, 0.5  # as the paper recommends


def scaled_hermite(order: int, distance: float, sigma: float = SIGMA) -> float:
    """Return sigma^n H_n(sigma x), of the physicists' polynomials."""
    x = sigma * distance
    lower, value = 0.0, 1.0
    for number in range(order):
        lower, value = value, 2 * x * value - 2 * number * lower
    return sigma**order * value


def differences(kept: Sequence[int], order: int) -> list[float]:
    """Return the weights, oldest first, of the backward difference of an order, over the last distance each time."""
    if order == 0:
        return [0.0] * (len(kept) - 1) + [1.0]
    newer, older = differences(kept, order - 1), [*differences(kept[:-1], order - 1), 0.0]
    return [(a - b) / (kept[-1] - kept[-2]) for a, b in zip(newer, older, strict=True)]


def hermite(kept: Sequence[int], step: int) -> list[float]:
    """Return the weights of the kept steps, oldest first, of which there are up to `ORDER` + 1."""
    total = [0.0] * len(kept)
    for order in range(min(ORDER, len(kept) - 1) + 1):
        factor = scaled_hermite(order, step - kept[-1]) / factorial(order)
        total = [a + factor * b for a, b in zip(total, differences(kept, order), strict=True)]
    return total


def _history() -> History:
    return History(hermite, length=ORDER + 1)


@contextlib.contextmanager
def _cached(subject: Subject, share: float, whole: bool) -> Iterator[dict[str, Any]]:
    mask = uniform_mask(subject.steps, round(share * subject.steps))
    level = LastBlock(mask, _history) if whole else Sublayers(lambda _, step: mask[step] == "1", _history)
    with level.running(subject):
        yield {}


def peer() -> Peer:
    """Return HiCache over its interval, on attention and MLPs as published, and on the last block's output."""
    whole = tuple(Setting(f"{each.label}, last block", each.knobs) for each in shares(whole=True))
    note = (
        f"our implementation after arXiv 2508.16984: order {ORDER}, sigma {SIGMA:g}, on the outputs of attention and "
        "MLPs, or of the last block"
    )
    return Peer("HiCache (reimplemented)", "fastcache_xdit", _cached, (*shares(whole=False), *whole), note=note)
