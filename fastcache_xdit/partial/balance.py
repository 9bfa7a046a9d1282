"""Equal shares of the kept tokens: attention over several ranks needs as many rows from each."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch

from fastcache_xdit.options import TokensConfig
from fastcache_xdit.parallel.consensus import Consensus
from fastcache_xdit.tokens.saliency import moving
from fastcache_xdit.tokens.selection import Selection, bucketed, rank_count, select, select_global


class Kept(Protocol):
    """The tokens that this rank computes at a partial step."""

    count: int

    def take(self, x: torch.Tensor) -> torch.Tensor:
        """Their rows, [B, N, D] of this rank's own tokens -> [B, count, D]."""

    def put(self, rows: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        """A copy of this rank's `rest` [B, N, D] with what became of the kept tokens, rows [B, count, D], in place."""

    def look_up(self, table: torch.Tensor) -> torch.Tensor:
        """What a table [N, d] of this rank's own tokens has for the kept ones, [B, count, d]."""


class Own:
    """Every rank computes tokens of its own shard."""

    def __init__(self, selection: Selection) -> None:
        self.selection = selection
        self.count = selection.index.shape[1]

    def take(self, x: torch.Tensor) -> torch.Tensor:
        """See `Kept`."""
        return self.selection.take(x)

    def put(self, rows: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        """See `Kept`."""
        return self.selection.put(rows, rest)

    def look_up(self, table: torch.Tensor) -> torch.Tensor:
        """See `Kept`."""
        return self.selection.take_shared(table)


class Moved:
    """Every rank computes an equal chunk of all kept tokens; rows travel to it and back home.

    Args:
        kept: the tokens that are kept of the whole sequence, K a multiple of the shards.
        shards: how many ranks share the sequence, in shards of `length` tokens.
        largest: the most tokens that any shard keeps in any sample.
        consensus: exchanges rows.
    """

    def __init__(self, kept: Selection, shards: int, length: int, largest: int, consensus: Consensus) -> None:
        self.consensus = consensus
        self.count = kept.index.shape[1] // shards
        owner = kept.index // length
        begins = (owner[..., None] < torch.arange(shards, device=owner.device)).sum(dim=1)  # [B, R]
        mine = owner == consensus.shard
        self._is_kept = _dense(kept.index - consensus.shard * length, mine, length)
        places = self._is_kept.cumsum(dim=1) - 1 + begins[:, consensus.shard, None]
        self._place = places.clamp(0, kept.index.shape[1] - 1)[..., None]  # of each token among all kept ones
        self._packed = self._pack(kept, length, largest)
        self._chunk = self._find(kept, owner, begins, shards, largest)

    def take(self, x: torch.Tensor) -> torch.Tensor:
        """See `Kept`: one exchange of the kept rows."""
        everyone = self.consensus.exchange(x.take_along_dim(self._packed, dim=1))
        return everyone.transpose(0, 1).flatten(1, 2).take_along_dim(self._chunk, dim=1)

    def put(self, rows: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        """See `Kept`: one exchange of what became of them."""
        everyone = self.consensus.exchange(rows).transpose(0, 1).flatten(1, 2)
        return torch.where(self._is_kept[..., None], everyone.take_along_dim(self._place, dim=1), rest)

    def look_up(self, table: torch.Tensor) -> torch.Tensor:
        """Not possible: tables of other shards are not here."""
        raise NotImplementedError("tokens.balance=reshard with rotary tables")

    def _pack(self, kept: Selection, length: int, largest: int) -> torch.Tensor:
        """[B, largest, 1]: this rank's kept tokens, in ascending order, then others that nobody asks for."""
        order = self._is_kept.sort(dim=1, descending=True, stable=True).indices
        return order[:, :largest, None]

    def _find(
        self, kept: Selection, owner: torch.Tensor, begins: torch.Tensor, shards: int, largest: int
    ) -> torch.Tensor:
        """[B, count, 1]: where this rank's chunk lies among what all shards packed."""
        number = torch.arange(kept.index.shape[1], device=owner.device)
        place = owner * largest + number - begins.gather(1, owner)
        mine = number.view(shards, -1)[self.consensus.shard]
        return place[:, mine, None]


class TokenScores(NamedTuple):
    """Scores [R, B, N] of all shards' tokens, and their mean squared norm [B]."""

    by_shard: torch.Tensor
    energy: torch.Tensor

    @property
    def total(self) -> int:
        """Tokens of the whole sequence."""
        return self.by_shard.shape[0] * self.by_shard.shape[2]


def choose_tokens(scores: TokenScores, options: TokensConfig, consensus: Consensus) -> Kept | None:
    """Choose the tokens that this rank computes; None where so many move that the step is better computed whole.

    Every rank gets the same answer from the same scores, and at least one token, since attention takes no empty rows.
    `threshold` or a region costs a host read, and so does `balance` over several ranks.
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
        return Moved(kept, ranks, length, largest, consensus)
    return Own(kept if ranks == 1 else select(scores.by_shard[consensus.shard], own_count))


def _wanted(scores: TokenScores, options: TokensConfig) -> int:
    """How many tokens of the whole sequence are to be computed: in the sample with the most, at a threshold."""
    if options.keep_ratio is not None:
        return math.ceil(options.keep_ratio * scores.total - 1e-9)
    flat = scores.by_shard.transpose(0, 1).flatten(1)
    if options.score == "region":
        return int(flat.sum(dim=1).amax())
    assert options.threshold is not None
    return int(moving(flat, scores.energy, options.threshold).sum(dim=1).amax())


def _dense(index: torch.Tensor, valid: torch.Tensor, length: int) -> torch.Tensor:
    """[B, length] bool: which tokens are among the valid ones of `index` [B, K]."""
    spot = torch.where(valid, index, length)  # the others fall on one more place, which is cut off
    found = torch.zeros(len(index), length + 1, dtype=torch.bool, device=index.device)
    return found.scatter(1, spot, True)[:, :length]
