"""Which tokens are kept, taking them out and putting them back, on one process and over the shards of a sequence."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class Selection:
    """The kept tokens of each sample: `index` [B, K] int64, ascending."""

    index: torch.Tensor

    def take(self, x: torch.Tensor) -> torch.Tensor:
        """The kept rows: [B, N, ...], or [1, N, ...] where all samples share it -> [B, K, ...]."""
        return x.expand(len(self.index), *x.shape[1:])[self._rows(), self.index]

    def take_shared(self, x: torch.Tensor) -> torch.Tensor:
        """The kept rows of what has no batch dimension, such as rotary tables: [N, ...] -> [B, K, ...]."""
        return x[self.index]

    def put(self, rows: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        """A copy of `rest` [B, N, ...] with `rows` [B, K, ...] at their places: undoes `take` bit for bit."""
        return rest.index_put((self._rows(), self.index), rows)

    def _rows(self) -> torch.Tensor:
        return torch.arange(len(self.index), device=self.index.device)[:, None]


def select(saliency: torch.Tensor, count: int) -> Selection:
    """The `count` most salient tokens of each sample [B, N], ties to the lower index, NaN above everything.

    Raises:
        ValueError: a count that is not between 0 and N.
    """
    total = saliency.shape[1]
    if not 0 <= count <= total:
        raise ValueError(f"cannot keep {count} of {total} tokens: give a count between 0 and {total}")
    order = saliency.sort(dim=1, descending=True, stable=True).indices
    return Selection(order[:, :count].sort(dim=1).values)


def bucketed(count: int, size: int, total: int) -> int:
    """`count` rounded up to a multiple of `size`, at most `total`: few different shapes for kernels and ranks."""
    return min(-(-count // size) * size, total)


def share_pairs(saliency: torch.Tensor) -> torch.Tensor:
    """[2B', N], rows [uncond; cond] of classifier-free guidance: both halves get the larger of the two.

    Energies for `moving` are shared the same way, as [2B', 1], so that both branches of a sample keep the same tokens.

    Raises:
        ValueError: an odd number of rows.
    """
    if len(saliency) % 2:
        raise ValueError(f"{len(saliency)} rows are no pairs of guidance branches: pass [uncond; cond] halves")
    return torch.maximum(*saliency.chunk(2)).repeat(2, 1)


def select_global(scores: torch.Tensor, count: int) -> Selection:
    """What one process would `select`, from the gathered scores [R, B, N / R] of the ranks' consecutive shards.

    The indices count along the whole sequence; every rank finds the same ones.
    """
    return select(scores.transpose(0, 1).flatten(1), count)


def rank_count(kept: Selection, ranks: int, total: int, size: int) -> int:
    """How many tokens every rank keeps of its own N / R, so that its most salient ones include its part of `kept`.

    The largest part of any rank in any sample, bucketed by `size`. One host read.
    """
    shard = total // ranks
    owner = kept.index // shard
    parts = (owner[..., None] == torch.arange(ranks, device=owner.device)).sum(dim=1)
    return bucketed(int(parts.amax()), size, shard)


def reshard(kept: Selection, ranks: int) -> torch.Tensor:
    """[R, B, K / R] indices along the whole sequence: `kept` in equal consecutive chunks, one per rank.

    Raises:
        ValueError: K is not a multiple of the ranks.
    """
    batch, count = kept.index.shape
    if count % ranks:
        raise ValueError(f"{count} tokens do not divide among {ranks} ranks: keep bucketed(count, {ranks}, N) of them")
    return kept.index.view(batch, ranks, count // ranks).transpose(0, 1)
