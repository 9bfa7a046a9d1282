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

# Steps of 50 that the paper computes on FLUX, and the end: dense at first, then ever wider.
PUBLISHED = (0, 1, 2, 4, 6, 9, 14, 23, 30, 37, 44, 50)
RATE, EPOCHS = 0.01, 201  # of its training, by Adam
RIDGE = 1e-6  # of the mean square of what the weights are for


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


def closed_loop(products: torch.Tensor, mask: str) -> torch.Tensor:
    """Fit weights [N, N] of the steps before each skipped one, by least squares with a small ridge.

    What was estimated before is taken as it came out. Rows of computed steps are zero.

    Args:
        products: mean product of the features of each two steps, [N, N] float64.
        mask: "1" for computed steps.
    """
    weights, history = torch.zeros_like(products), torch.eye(len(mask), dtype=products.dtype)
    for step, _ in (pair for pair in enumerate(mask) if pair[1] == "0"):
        kept = history[:step]  # what was seen of each earlier step, in terms of the recorded ones
        gram, wanted = kept @ products @ kept.T, kept @ products[:, step]
        prior = torch.zeros(step, dtype=products.dtype)
        prior[-1] = 1
        ridge = RIDGE * gram.diagonal().mean()
        fitted = torch.linalg.solve(gram + ridge * torch.eye(step), wanted + ridge * prior)
        weights[step, :step], history[step] = fitted, fitted @ kept
    return weights


def open_loop(products: torch.Tensor) -> torch.Tensor:
    """Train weights [N, N] of the steps before each step as the paper's code does, on recorded features alone.

    They begin as reuse of the step before, and serve all masks.
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
def _published(subject: Subject) -> torch.Tensor:
    return open_loop(products(subject))


@contextlib.contextmanager
def _cached(subject: Subject, share: float, closed: bool) -> Iterator[dict[str, Any]]:
    mask = dense_first(subject.steps, round(share * subject.steps))
    table = (closed_loop(products(subject), mask) if closed else _published(subject)).tolist()

    def weights(kept: Sequence[int], step: int) -> Sequence[float]:
        return table[step][: len(kept)]

    with LastBlock(mask, lambda: History(weights, with_estimates=True)).running(subject):
        yield {}


def peer() -> Peer:
    """Return L2P over masks of the published shape, with both ways of fitting its weights."""
    as_published = tuple(Setting(f"{each.label}, as published", each.knobs) for each in shares(closed=False))
    note = (
        "our implementation after arXiv 2604.26365 and its code: last block's output, masks of the published shape, "
        "weights fitted to 4 requests, with estimates as they came out; as published: by Adam on computed steps alone"
    )
    settings = (*shares(closed=True), *as_published)
    return Peer("L2P (reimplemented)", "fastcache_xdit", _cached, settings, note=note)
