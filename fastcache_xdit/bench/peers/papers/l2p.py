"""L2P (arXiv 2604.26365): one learnt weight for each skipped step and each step before it, estimates included."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from fastcache_xdit.bench.peers.papers.forecast import History
from fastcache_xdit.bench.peers.papers.last_block import LastBlock
from fastcache_xdit.bench.peers.papers.recording import products
from fastcache_xdit.bench.peers.peer import Peer, Setting, Subject, shares
from fastcache_xdit.decision.schedule import uniform_mask

# Steps of 50 that the paper computes on FLUX, and the end: dense at first, then ever wider.
PUBLISHED = (0, 1, 2, 4, 6, 9, 14, 23, 30, 37, 44, 50)
RATE, EPOCHS = 0.01, 201  # of its training, by Adam
RIDGE = 1e-2  # of the mean square of what the weights are for; with much less, errors of earlier steps grow


def dense_first(steps: int, computed: int) -> str:
    """Return a mask in the shape of the published ones: `computed` steps out of `steps`, dense at first."""
    chosen: list[int] = []
    for number in range(computed):
        place = number * (len(PUBLISHED) - 1) / computed
        before = int(place)
        exact = PUBLISHED[before] + (place - before) * (PUBLISHED[before + 1] - PUBLISHED[before])
        step = round(exact * steps / PUBLISHED[-1])
        latest = steps - (computed - number)  # else there is no room for the others
        chosen.append(min(max(step, chosen[-1] + 1 if chosen else 0), latest))
    return "".join("1" if step in chosen else "0" for step in range(steps))


def closed_loop(products: torch.Tensor, mask: str, ridge: float = RIDGE) -> torch.Tensor:
    """Fit weights [N, N] of the steps before each skipped one, by least squares with a ridge towards reuse.

    What was estimated before is taken as it came out. Rows of computed steps are zero.

    Args:
        products: mean product of the features of each two steps, [N, N] float64.
        mask: "1" for computed steps.
        ridge: of the mean square.
    """
    weights, history = torch.zeros_like(products), torch.eye(len(mask), dtype=products.dtype)
    for step in (step for step, mark in enumerate(mask) if mark == "0"):
        kept = history[:step]  # what was seen of each earlier step, in terms of the recorded ones
        gram, wanted = kept @ products @ kept.T, kept @ products[:, step]
        prior = torch.zeros(step, dtype=products.dtype)
        prior[-1] = 1
        pull = ridge * gram.diagonal().mean()
        fitted = torch.linalg.solve(gram + pull * torch.eye(step), wanted + pull * prior)
        weights[step, :step], history[step] = fitted, fitted @ kept
    return weights


def open_loop(products: torch.Tensor) -> torch.Tensor:
    """Train weights [N, N] of the steps before each step as the paper's code does, on recorded features alone.

    They begin as reuse of the step before, end after so many epochs, and serve all masks.
    """
    count = len(products)
    causal = torch.ones_like(products).tril(-1)
    weights = torch.eye(count, dtype=products.dtype).roll(1, 0).tril(-1).requires_grad_()
    adam = torch.optim.Adam([weights], lr=RATE)
    with torch.enable_grad():
        for _ in range(EPOCHS):
            used = (weights * causal)[1:]
            loss = torch.einsum("ij,jk,ik->", used, products, used) - 2 * (used * products[1:]).sum()
            adam.zero_grad()
            loss.backward()
            adam.step()
    return (weights * causal).detach()


@functools.lru_cache(maxsize=1)
def _trained(subject: Subject) -> torch.Tensor:
    return open_loop(products(subject))


@contextlib.contextmanager
def _cached(subject: Subject, share: float, even: bool = False, closed: bool = False) -> Iterator[dict[str, Any]]:
    mask = (uniform_mask if even else dense_first)(subject.steps, round(share * subject.steps))
    table = (closed_loop(products(subject), mask) if closed else _trained(subject)).tolist()

    def weights(kept: Sequence[int], step: int) -> Sequence[float]:
        return table[step][: len(kept)]

    with LastBlock(mask, lambda: History(weights, with_estimates=True)).running(subject):
        yield {}


def peer() -> Peer:
    """Return L2P with masks of the published shape and even ones, and with both ways of fitting its weights."""
    even = tuple(Setting(f"{each.label}, even", each.knobs) for each in shares(even=True))
    closed = tuple(Setting(f"{each.label}, closed loop", each.knobs) for each in shares(closed=True))
    note = (
        "our implementation after arXiv 2604.26365 and its code: last block's output, masks of the published shape or "
        "even ones, weights trained by Adam on 4 requests; closed loop: least squares, with estimates as they came out"
    )
    return Peer("L2P (reimplemented)", "fastcache_xdit", _cached, (*shares(), *even, *closed), note=note)
