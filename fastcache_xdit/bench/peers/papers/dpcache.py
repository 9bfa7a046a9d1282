"""DPCache (arXiv 2602.22654): the steps to compute are the cheapest path, by dynamic programming."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from fastcache_xdit.approx.linear import line_weights
from fastcache_xdit.bench.peers.papers.forecast import History
from fastcache_xdit.bench.peers.papers.last_block import LastBlock
from fastcache_xdit.bench.peers.papers.recording import products
from fastcache_xdit.bench.peers.peer import Peer, Subject, shares

# What skipping all steps between two computed ones costs; the first is the computed step before them, if any.
Cost = Callable[[int | None, int, int], float]


def line(kept: Sequence[int], step: int) -> list[float]:
    """Return the weights of the straight line through the last one or two kept steps, oldest first."""
    last = kept[-2:]
    return [0.0] * (len(kept) - len(last)) + line_weights(last[::-1], step)[::-1]


def cost_of(products: torch.Tensor) -> Cost:
    """Return the relative error of the line through two computed steps, summed over the skipped steps behind them.

    Args:
        products: mean product of the features of each two steps, [N, N].
    """
    table = products.tolist()

    def error(kept: tuple[int, ...], step: int) -> float:
        terms = [*zip(kept, line(kept, step), strict=True), (step, -1.0)]
        square = sum(a * b * table[i][j] for i, a in terms for j, b in terms)
        return math.sqrt(max(square, 0) / table[step][step])

    def cost(before: int | None, last: int, following: int) -> float:
        kept = (last,) if before is None else (before, last)
        return sum(error(kept, step) for step in range(last + 1, following))

    return cost


def cheapest_path(cost: Cost, steps: int, computed: int) -> tuple[int, ...]:
    """Return which steps to compute, so many and the first among them, at the least cost in all."""
    paths: dict[tuple[int | None, int], tuple[float, tuple[int, ...]]] = {(None, 0): (0.0, (0,))}
    for _ in range(computed - 1):
        longer: dict[tuple[int | None, int], tuple[float, tuple[int, ...]]] = {}
        for (before, last), (spent, path) in paths.items():
            for following in range(last + 1, steps):
                found = (spent + cost(before, last, following), (*path, following))
                longer[last, following] = min(found, longer.get((last, following), found))
        paths = longer
    return min((spent + cost(before, last, steps), path) for (before, last), (spent, path) in paths.items())[1]


@contextlib.contextmanager
def _cached(subject: Subject, share: float) -> Iterator[dict[str, Any]]:
    path = cheapest_path(cost_of(products(subject)), subject.steps, round(share * subject.steps))
    mask = "".join("1" if step in path else "0" for step in range(subject.steps))
    with LastBlock(mask, lambda: History(line, length=2)).running(subject):
        yield {}


def peer() -> Peer:
    """Return DPCache over its number of computed steps."""
    note = (
        "our implementation after arXiv 2602.22654: last block's output, straight lines through two computed steps, "
        "relative errors on 4 requests of one other prompt each as costs"
    )
    return Peer("DPCache (reimplemented)", "fastcache_xdit", _cached, shares(), note=note)
