"""What caches learn from requests that are computed in full: how alike the last block's outputs of two steps are."""

from __future__ import annotations

import functools

import torch

from fastcache_xdit.bench.peers.papers.forecast import History, reuse
from fastcache_xdit.bench.peers.papers.last_block import LastBlock
from fastcache_xdit.bench.peers.peer import Subject

REQUESTS = 4  # of one other prompt each, as many as FastCache learns from


@functools.lru_cache(maxsize=1)
def products(subject: Subject) -> torch.Tensor:
    """Return the mean product of the features of each two steps, [N, N] float64, over requests and branches.

    The mean squared error of every weighted sum of steps follows from it.
    """
    recorder = LastBlock("1" * subject.steps, lambda: History(reuse))
    total = torch.zeros(subject.steps, subject.steps, dtype=torch.float64)
    with recorder.running(subject):
        for number in range(REQUESTS):
            subject.rehearse(number)
            for history in recorder.histories.values():
                features = torch.stack([value.double().flatten().cpu() for value in history.values])
                total += features @ features.T / features.shape[1]
    return total / REQUESTS
