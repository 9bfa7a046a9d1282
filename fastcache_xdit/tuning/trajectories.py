"""The trajectories that recorded states make up: those of the CFG branches, or of what guidance combines them to."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fastcache_xdit.host.guidance import Combination, Part

LEAST_SUM = 1e-2  # of weights, relative to the largest: a mere difference of branches has no constant to fit

Rows = dict[tuple[str, int], list[torch.Tensor]]  # by branch and step, see `sampled`
Weights = dict[Part, float]


def sampled(states: torch.Tensor, most: int) -> list[torch.Tensor]:
    """Return rows of a batch that may hold two branches: the same ones of either half, and at every step.

    Each half of an even batch gives at most `most` rows [n, D], and so does an odd batch as a whole.
    """
    return [some_rows(half, most) for half in (states.chunk(2) if len(states) % 2 == 0 else [states])]


def some_rows(states: torch.Tensor, most: int) -> torch.Tensor:
    """Return at most `most` evenly spaced rows on the CPU, [B, N, D] -> [n, D]."""
    rows = states.detach().flatten(0, 1)
    return rows[:: -(-len(rows) // most)].cpu().clone()


def trajectories(rows: Rows, combinations: Mapping[int, Combination], steps: int) -> list[list[Weights]]:
    """Return the weights of recorded rows at each step: one list where it is known how guidance combines branches.

    Otherwise one for each branch.
    """
    guided = [_normalised(combinations.get(step)) for step in range(steps)]
    if all(weights and _fit(rows, weights, step) for step, weights in enumerate(guided)):
        return [guided]
    branches = sorted({branch for branch, _ in rows})
    return [
        [{Part(branch): 1.0}] * steps for branch in branches if all((branch, step) in rows for step in range(steps))
    ]


def mixed(rows: Rows, weights: Weights, step: int) -> torch.Tensor:
    """Return the weighted sum of the rows of a step, [n, D] float32."""
    return torch.stack([weight * _part(rows, part, step).float() for part, weight in weights.items()]).sum(dim=0)


def _normalised(combination: Combination | None) -> Weights:
    """Return weights that add up to 1, so that a constant remains what it is in each branch; none if they cannot.

    A branch's calls beyond the first are no steps of the cache, and left out.
    """
    parts = zip(combination.parts, combination.weights, strict=True) if combination else ()
    weights = {part: weight for part, weight in parts if part.call == 0}
    total = sum(weights.values())
    if abs(total) < LEAST_SUM * max(map(abs, weights.values()), default=1.0):
        return {}
    return {part: weight / total for part, weight in weights.items()}


def _fit(rows: Rows, weights: Weights, step: int) -> bool:
    """Return whether all parts were recorded at a step, in one shape."""
    if any(len(rows.get((part.branch, step), ())) <= (part.half or 0) for part in weights):
        return False
    return len({_part(rows, part, step).shape for part in weights}) == 1


def _part(rows: Rows, part: Part, step: int) -> torch.Tensor:
    halves = rows[part.branch, step]
    return torch.cat(halves) if part.half is None else halves[part.half]
