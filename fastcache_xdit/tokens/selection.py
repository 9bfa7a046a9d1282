"""Selections of kept tokens: choosing, taking out and putting back, in one process and over shards of a sequence."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class Selection:
    """The kept tokens of each sample.

    Attributes:
        index: [B, K] int64, ascending.
    """

    index: torch.Tensor

    def take(self, x: torch.Tensor) -> torch.Tensor:
        """Return the kept rows, [B, N, ...] -> [B, K, ...]; a first dimension of 1 is shared by all samples."""
        return x.expand(len(self.index), *x.shape[1:])[self._rows(), self.index]

    def look_up(self, x: torch.Tensor) -> torch.Tensor:
        """Return the kept rows of a table without batch dimension, such as rotary tables: [N, ...] -> [B, K, ...]."""
        return x[self.index]

    def put(self, rows: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        """Return a copy of `rest` [B, N, ...] with `rows` [B, K, ...] in place; undoes `take` bit for bit."""
        return rest.index_put((self._rows(), self.index), rows)

    def _rows(self) -> torch.Tensor:
        return torch.arange(len(self.index), device=self.index.device)[:, None]


def select(saliency: torch.Tensor, count: int) -> Selection:
    """Select the `count` tokens of each sample with the largest saliency [B, N]; ties go to the lower index, NaN first.

    Raises:
        ValueError: the count is not between 0 and N.
    """
    total = saliency.shape[1]
    if not 0 <= count <= total:
        raise ValueError(f"cannot keep {count} of {total} tokens: give a count between 0 and {total}")
    order = saliency.sort(dim=1, descending=True, stable=True).indices
    return Selection(order[:, :count].sort(dim=1).values)


def bucketed(count: int, size: int, total: int) -> int:
    """Round `count` up to a multiple of `size`, at most `total`, so that kernels and ranks see few different shapes."""
    return min(-(-count // size) * size, total)


def larger_of_branches(saliency: torch.Tensor) -> torch.Tensor:
    """Give both CFG branches of a sample the larger of their two values, [2B, N] with rows [uncond; cond].

    Applied to saliencies and energies, this makes both branches keep the same tokens.

    Raises:
        ValueError: the number of rows is odd.
    """
    if len(saliency) % 2:
        raise ValueError(f"{len(saliency)} rows are no pairs of guidance branches: pass [uncond; cond] halves")
    return torch.maximum(*saliency.chunk(2)).repeat(2, 1)


def select_global(scores: torch.Tensor, count: int) -> Selection:
    """Select from the gathered scores [R, B, N / R] of consecutive shards what one process would select.

    The indices refer to the whole sequence and are the same on every rank.
    """
    return select(scores.transpose(0, 1).flatten(1), count)


def rank_count(kept: Selection, ranks: int, total: int, size: int) -> int:
    """Return how many of its own N / R tokens each rank keeps, so that they include its part of `kept`.

    This is the largest part of any rank in any sample, rounded up to a multiple of `size`. It costs one host read.
    """
    shard = total // ranks
    owner = kept.index // shard
    parts = (owner[..., None] == torch.arange(ranks, device=owner.device)).sum(dim=1)
    return bucketed(int(parts.amax()), size, shard)
