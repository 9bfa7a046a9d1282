"""Agreement between ranks: local sums are gathered and added in rank order in float64, to the same bits everywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from fastcache_xdit.errors import RankDivergenceError
from fastcache_xdit.parallel.arrival import arriving


class Consensus(Protocol):
    """Exchanges what a decision needs between the ranks that must agree.

    Attributes:
        shard: index of this rank's shard of the sequence.
        shard_count: number of shards of the sequence.
    """

    shard: int
    shard_count: int

    def agree(self, sums: torch.Tensor, stamp: int, place: str) -> torch.Tensor:
        """Add up the sums of all agreeing ranks, per CFG branch.

        Args:
            sums: [rows, K] float64 local sums, one row per sample; every rank passes the same shape.
            stamp: digest of all decisions so far, below 2**53; it is exchanged with the sums.
            place: words for the error message, such as "step 3, block transformer_blocks.1".
        Returns:
            [rows x branches, K] float64 on the CPU, the same bits on every rank.
        Raises:
            RankDivergenceError: the stamps differ.
        """

    def agree_later(self, sums: torch.Tensor, stamp: int, place: str) -> Callable[[], torch.Tensor]:
        """Begin what `agree` does; what is returned ends it, raises as it does, and is called in the same order."""

    def confirm(self, stamp: int, place: str) -> None:
        """Compare stamps alone.

        Raises:
            RankDivergenceError: the stamps differ; raised on all ranks.
        """

    def gather_shards(self, values: torch.Tensor, stamp: int, place: str) -> torch.Tensor:
        """Gather values of all shards of the sequence, [rows, K] -> [R, rows, K], the same bits on every rank.

        Over CFG branches, the largest value is taken; of tensor-parallel ranks, which hold the same tokens, the first.

        Raises:
            RankDivergenceError: the stamps differ.
        """

    def exchange(self, rows: torch.Tensor) -> torch.Tensor:
        """Gather a tensor of each shard of the sequence, [...] -> [R, ...]; unchecked, as it runs inside a block."""


class Solo:
    """The consensus of one process, which exchanges nothing."""

    shard, shard_count = 0, 1

    def agree(self, sums: torch.Tensor, stamp: int, place: str) -> torch.Tensor:
        """Return the sums on the CPU (the one host read of a decision)."""
        return sums.cpu()

    def agree_later(self, sums: torch.Tensor, stamp: int, place: str) -> Callable[[], torch.Tensor]:
        """Begin to copy the sums to the CPU."""
        return arriving(sums)

    def confirm(self, stamp: int, place: str) -> None:
        """Do nothing: one process agrees with itself."""

    def gather_shards(self, values: torch.Tensor, stamp: int, place: str) -> torch.Tensor:
        """Return the whole sequence as one shard."""
        return values[None]

    def exchange(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the one shard."""
        return rows[None]


def add_by_branch(gathered: torch.Tensor, branches: Sequence[int]) -> torch.Tensor:
    """Add the sums of each CFG branch in rank order and stack the branches, [R, rows, K] -> [rows x branches, K]."""
    totals: dict[int, torch.Tensor] = {}
    for branch, sums in zip(branches, gathered, strict=True):
        totals[branch] = totals[branch] + sums if branch in totals else sums
    return torch.cat([totals[branch] for branch in sorted(totals)])


def check_stamps(stamps: Sequence[float], ranks: Sequence[int], place: str) -> None:
    """Check that all stamps are equal.

    Raises:
        RankDivergenceError: they differ; names the ranks on each side.
    """
    if len(set(stamps)) == 1:
        return
    ranks_by_stamp: dict[float, list[int]] = {}
    for rank, stamp in zip(ranks, stamps, strict=True):
        ranks_by_stamp.setdefault(stamp, []).append(rank)
    sides = " and ".join(f"ranks {side}" for side in ranks_by_stamp.values())
    raise RankDivergenceError(
        f"cache decisions diverged between {sides} at {place}; "
        f"the request was stopped before their collectives could mismatch"
    )
