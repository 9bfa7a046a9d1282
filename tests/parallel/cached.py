"""One request with or without the cache, on one rank, and what a test wants to know of it."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch

from fastcache_xdit import FastCacheConfig, Handle, fastcache
from fastcache_xdit.parallel.ledger import Entry
from fastcache_xdit.plugin import repaired
from tests.parallel.ranks import generate

STEPS = 10
EAGER = {"test": "paper", "error_budget": 0.06}  # skips a good third of the blocks of the tiny models
NOTHING = {"config": {"error_budget": 0}}  # with the same test, every step is computed


@dataclass
class Answer:
    """What one rank saw of one request; latents are None on ranks that xDiT leaves without."""

    latents: torch.Tensor | None
    ledger: tuple[Entry, ...] = ()
    counts: dict[str, Any] | None = None
    agreed: bool | None = None

    @property
    def choices(self) -> list[tuple]:
        """The decisions without their statistics."""
        return [entry.choice for entry in self.ledger]

    @property
    def share(self) -> float:
        """Approximated / all block calls."""
        spared = self.counts["approximated_total"]
        return spared / (spared + self.counts["computed_total"])


def uncached(pipe: Any, family: str, **request: Any) -> Answer:
    """Run a request with xDiT's defects cured and no cache."""
    with repaired(pipe):
        return Answer(generate(pipe, family, **{"steps": STEPS, **request}))


def cached(pipe: Any, family: str, config: dict, **request: Any) -> Answer:
    """Run a request with a cache of its own."""
    with fastcache(pipe, FastCacheConfig(**{**EAGER, **config})) as handle:
        return asked(handle, pipe, family, **request)


def asked(handle: Handle, pipe: Any, family: str, **request: Any) -> Answer:
    """Run a request with the cache that is on."""
    latents = generate(pipe, family, **{"steps": STEPS, **request})
    report = handle.report()
    return Answer(latents, report.ledger, report.counters.to_dict(), report.ledgers_agree)


def of_replica(request: dict) -> dict:
    """Take this data-parallel replica's item of every list in a request."""
    from xfuser.core.distributed import get_data_parallel_rank

    return {
        name: value[get_data_parallel_rank()] if isinstance(value, list) else value for name, value in request.items()
    }


def relative(latents: torch.Tensor, truth: torch.Tensor) -> float:
    """Norm of the difference over the norm of `truth`."""
    return ((latents - truth).norm() / truth.norm()).item()


def psnr(latents: torch.Tensor, truth: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB; the peak is the range of `truth`."""
    error = (latents - truth).square().mean()
    return (10 * torch.log10((truth.max() - truth.min()).square() / error)).item()


def clearance(answer: Answer, budget: float = EAGER["error_budget"]) -> float:
    """How near the closest decision was to the budget, relative to it: rounding must not be able to flip one."""
    spent, nearest = defaultdict(float), math.inf
    for entry in answer.ledger:
        place = entry.branch, entry.patch, entry.segment
        total = spent[place] + entry.predicted_error
        if entry.reason in ("budget", "insignificant"):
            nearest = min(nearest, abs(total / budget - 1))
        spent[place] = total if entry.skip else 0.0
    return nearest
