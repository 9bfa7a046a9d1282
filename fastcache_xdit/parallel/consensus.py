"""The agreement primitive: gather local sums, add them in rank order in float64, so every rank holds the same bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from fastcache_xdit.errors import RankDivergenceError


class Consensus(Protocol):
    """How the ranks that must agree exchange what a decision needs.

    Attributes:
        shard: place of this rank's tokens among the shards of the sequence.
        shard_count: how many shards the sequence has.
    """

    shard: int
    shard_count: int

    def agree(self, sums: torch.Tensor, stamp: int, place: str) -> torch.Tensor:
        """Add up the sums of all agreeing ranks, per CFG branch.

        Args:
            sums: [rows, K] float64 local sums, one row per sample; every rank passes the same shape.
            stamp: digest of everything decided so far, below 2**53; it travels with the sums.
            place: words for the error, such as "step 3, block transformer_blocks.1".
        Returns:
            [rows x branches, K] float64 on the CPU, the same bits on every rank.
        Raises:
            RankDivergenceError: the stamps differ.
        """

    def confirm(self, stamp: int, place: str) -> None:
        """Compare stamps alone; raises RankDivergenceError on all ranks where they differ."""

    def gather_shards(self, values: torch.Tensor, stamp: int, place: str) -> torch.Tensor:
        """Gather what each shard of the sequence has, [rows, K] -> [R, rows, K], the same bits on every rank.

        Of several CFG branches the largest value; of tensor-parallel ranks, which hold the same tokens, the first's.

        Raises:
            RankDivergenceError: the stamps differ.
        """

    def exchange(self, rows: torch.Tensor) -> torch.Tensor:
        """Gather a tensor of each shard of the sequence, [...] -> [R, ...]; no check, as it stands inside a block."""


class Solo:
    """One process: nothing to exchange."""

    shard, shard_count = 0, 1

    def agree(self, sums: torch.Tensor, stamp: int, place: str) -> torch.Tensor:
        """Return the sums themselves, on the CPU (the one host read of a decision)."""
        return sums.cpu()

    def confirm(self, stamp: int, place: str) -> None:
        """Do nothing: one process agrees with itself."""

    def gather_shards(self, values: torch.Tensor, stamp: int, place: str) -> torch.Tensor:
        """Return the whole sequence as one shard."""
        return values[None]

    def exchange(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the one shard."""
        return rows[None]


def add_by_branch(gathered: torch.Tensor, branches: Sequence[int]) -> torch.Tensor:
    """Add ranks of the same CFG branch, in rank order; stack the branches. [R, rows, K] -> [rows x branches, K]."""
    totals: dict[int, torch.Tensor] = {}
    for branch, sums in zip(branches, gathered, strict=True):
        totals[branch] = totals[branch] + sums if branch in totals else sums
    return torch.cat([totals[branch] for branch in sorted(totals)])


def check_stamps(stamps: Sequence[float], ranks: Sequence[int], place: str) -> None:
    """Raise RankDivergenceError that names the ranks of each opinion, unless all stamps are equal."""
    if len(set(stamps)) == 1:
        return
    camps: dict[float, list[int]] = {}
    for rank, stamp in zip(ranks, stamps, strict=True):
        camps.setdefault(stamp, []).append(rank)
    sides = " and ".join(f"ranks {camp}" for camp in camps.values())
    raise RankDivergenceError(
        f"cache decisions diverged between {sides} at {place}; "
        f"the request was stopped before their collectives could mismatch"
    )
