"""The choice of kept tokens, with equal numbers on all ranks, as attention over several ranks needs."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch

from fastcache_xdit.options import TokensConfig
from fastcache_xdit.parallel.consensus import Consensus
from fastcache_xdit.tokens.saliency import moving
from fastcache_xdit.tokens.selection import Selection, bucketed, rank_count, select, select_global


class KeptTokens(Protocol):
    """The tokens that this rank computes at a partial step.

    Attributes:
        count: their number in each sample.
    """

    count: int

    def take(self, x: torch.Tensor) -> torch.Tensor:
        """Return their rows, given all rows [B, N, D] of this rank -> [B, count, D]."""

    def put(self, rows: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        """Return a copy of this rank's `rest` [B, N, D] with the kept tokens' outputs `rows` [B, count, D] in place."""

    def look_up(self, table: torch.Tensor) -> torch.Tensor:
        """Return the rows of a table [N, d] over this rank's tokens for the kept ones, [B, count, d]."""


class LocalTokens:
    """Kept tokens that lie in the rank's own shard of the sequence."""

    def __init__(self, selection: Selection) -> None:
        self.selection = selection
        self.count = selection.index.shape[1]

    def take(self, x: torch.Tensor) -> torch.Tensor:
        """Return the rows of the kept tokens, [B, N, D] -> [B, count, D]."""
        return self.selection.take(x)

    def put(self, rows: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        """Return a copy of `rest` [B, N, D] with `rows` [B, count, D] at the places of the kept tokens."""
        return self.selection.put(rows, rest)

    def look_up(self, table: torch.Tensor) -> torch.Tensor:
        """Return the rows of a table [N, d] for the kept tokens, [B, count, d]."""
        return self.selection.look_up(table)


class ReshardedTokens:
    """An equal chunk of all kept tokens for each rank; rows are sent to the rank that computes them and back.

    Args:
        kept: the kept tokens of the whole sequence; K is a multiple of `shards`.
        shards: number of ranks that share the sequence.
        length: tokens in each shard.
        largest: the largest number of tokens that any shard keeps in any sample.
        consensus: exchanges rows.
    """

    def __init__(self, kept: Selection, shards: int, length: int, largest: int, consensus: Consensus) -> None:
        self.consensus = consensus
        self.count = kept.index.shape[1] // shards
        owner = kept.index // length
        begins = (owner[..., None] < torch.arange(shards, device=owner.device)).sum(dim=1)  # [B, R]
        is_own = owner == consensus.shard
        self._is_kept = _dense(kept.index - consensus.shard * length, is_own, length)
        places = self._is_kept.cumsum(dim=1) - 1 + begins[:, consensus.shard, None]
        # Of each token of this rank, the place among all kept ones.
        self._place = places.clamp(0, kept.index.shape[1] - 1)[..., None]
        self._packed = self._pack(largest)
        self._chunk = self._chunk_places(kept, owner, begins, shards, largest)

    def take(self, x: torch.Tensor) -> torch.Tensor:
        """Return the rows of this rank's chunk, [B, N, D] -> [B, count, D], in one exchange between ranks."""
        gathered = self.consensus.exchange(x.take_along_dim(self._packed, dim=1))
        return gathered.transpose(0, 1).flatten(1, 2).take_along_dim(self._chunk, dim=1)

    def put(self, rows: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        """Return a copy of `rest` [B, N, D] with the outputs of this rank's kept tokens, in one exchange."""
        gathered = self.consensus.exchange(rows).transpose(0, 1).flatten(1, 2)
        return torch.where(self._is_kept[..., None], gathered.take_along_dim(self._place, dim=1), rest)

    def look_up(self, table: torch.Tensor) -> torch.Tensor:
        """Refuse: the rows of other ranks' tokens are not on this rank."""
        raise NotImplementedError("tokens.balance=reshard with rotary tables")

    def _pack(self, largest: int) -> torch.Tensor:
        """Return [B, largest, 1]: this rank's kept tokens in ascending order, then others as padding."""
        order = self._is_kept.sort(dim=1, descending=True, stable=True).indices
        return order[:, :largest, None]

    def _chunk_places(
        self, kept: Selection, owner: torch.Tensor, begins: torch.Tensor, shards: int, largest: int
    ) -> torch.Tensor:
        """Return [B, count, 1]: the places of this rank's chunk in the rows that all shards packed."""
        number = torch.arange(kept.index.shape[1], device=owner.device)
        place = owner * largest + number - begins.gather(1, owner)
        own_numbers = number.view(shards, -1)[self.consensus.shard]
        return place[:, own_numbers, None]


class TokenScores(NamedTuple):
    """Scores [R, B, N] of the tokens of all R shards, and the mean squared norm of the tokens, [B]."""

    by_shard: torch.Tensor
    energy: torch.Tensor

    @property
    def total(self) -> int:
        """Number of tokens in the whole sequence."""
        return self.by_shard.shape[0] * self.by_shard.shape[2]


def choose_tokens(scores: TokenScores, options: TokensConfig, consensus: Consensus) -> KeptTokens | None:
    """Choose the tokens that this rank computes; None if so many move that a full step is better.

    All ranks choose alike from the same scores, and each at least one token, since attention does not accept empty
    inputs. `threshold` and regions cost a host read, and so does `balance` over several ranks.
    """
    ranks, _, length = scores.by_shard.shape
    even = options.balance == "reshard" and ranks > 1
    count = bucketed(max(1, _wanted(scores, options)), math.lcm(options.bucket, ranks if even else 1), scores.total)
    kept = select_global(scores.by_shard, count)
    largest = count if ranks == 1 else rank_count(kept, ranks, scores.total, 1 if even else options.bucket)
    own_count = count // ranks if even else largest
    if not options.pays(own_count / length):
        return None
    if even:
        return ReshardedTokens(kept, ranks, length, largest, consensus)
    return LocalTokens(kept if ranks == 1 else select(scores.by_shard[consensus.shard], own_count))


def _wanted(scores: TokenScores, options: TokensConfig) -> int:
    """Return how many tokens of the whole sequence to compute; at a threshold, for the sample that needs most."""
    if options.keep_ratio is not None:
        return math.ceil(options.keep_ratio * scores.total - 1e-9)
    flat = scores.by_shard.transpose(0, 1).flatten(1)
    if options.score == "region":
        return int(flat.sum(dim=1).amax())
    assert options.threshold is not None
    return int(moving(flat, scores.energy, options.threshold).sum(dim=1).amax())


def _dense(index: torch.Tensor, valid: torch.Tensor, length: int) -> torch.Tensor:
    """Return [B, length] bool: the tokens that `index` [B, K] names, where it is valid."""
    spot = torch.where(valid, index, length)  # invalid ones go to an extra place, which is cut off
    is_named = torch.zeros(len(index), length + 1, dtype=torch.bool, device=index.device)
    return is_named.scatter(1, spot, True)[:, :length]
