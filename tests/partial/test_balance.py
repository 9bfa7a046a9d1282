"""TokenScores of kept tokens: equal on every rank, nothing lost, rows that travel come home; ranks played in turn."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastcache_xdit.options import TokensConfig
from fastcache_xdit.partial.balance import LocalTokens, ReshardedTokens, TokenScores, choose_tokens
from fastcache_xdit.tokens.selection import select
from tests.tokens.drawing import PROPERTY, random, seeds


class Played:
    """One rank's part in an exchange: it sends, and is interrupted until `everyone`'s rows are known."""

    def __init__(self, shard: int) -> None:
        self.shard = shard
        self.sent: torch.Tensor | None = None
        self.everyone: torch.Tensor | None = None

    def exchange(self, rows: torch.Tensor) -> torch.Tensor:
        """What all ranks have sent."""
        self.sent = rows
        if self.everyone is None:
            raise InterruptedError
        return self.everyone


@st.composite
def sequences(draw):
    ranks, batch, length = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 9))
    scores = random(draw(seeds()), ranks, batch, length).square()
    scores[0] += draw(st.sampled_from([0.0, 5.0]))  # all motion on one rank
    options = {"bucket": draw(st.integers(1, 4)), "keep_ratio": draw(st.floats(0.01, 1)), "min_static_ratio": 0}
    return TokenScores(scores, torch.ones(batch)), options


@PROPERTY
@given(sequences())
def test_padded_shares_are_equal_and_hold_what_one_process_keeps(drawn):
    shares, options = drawn
    ranks, batch, length = shares.by_shard.shape
    alone = choose_tokens(whole(shares), TokensConfig(**options), Played(0))
    found = [choose_tokens(shares, TokensConfig(**options), Played(rank)) for rank in range(ranks)]
    if any(kept is None for kept in found):
        assert found == [None] * ranks
        return
    assert isinstance(alone, LocalTokens) and len({kept.count for kept in found}) == 1
    for sample in range(batch):
        kept = torch.cat([rank * length + each.selection.index[sample] for rank, each in enumerate(found)])
        assert set(alone.selection.index[sample].tolist()) <= set(kept.tolist())


@PROPERTY
@given(sequences())
def test_moved_rows_are_equal_shares_and_come_home(drawn):
    shares, options = drawn
    ranks, batch, length = shares.by_shard.shape
    played = [Played(rank) for rank in range(ranks)]
    found = [choose_tokens(shares, TokensConfig(**options, balance="reshard"), each) for each in played]
    if ranks == 1 or found[0] is None:
        return
    x = random(0, batch, ranks * length, 5)
    wanted = select(shares.by_shard.transpose(0, 1).flatten(1), ranks * found[0].count)
    rows = together(played, found, "take", [(part,) for part in x.chunk(ranks, dim=1)])
    assert torch.equal(torch.cat(rows, dim=1), wanted.take(x))
    home = together(played, found, "put", [(-mine, part) for mine, part in zip(rows, x.chunk(ranks, 1), strict=True)])
    assert torch.equal(torch.cat(home, dim=1), wanted.put(-wanted.take(x), x))


def together(
    played: list[Played], found: list[ReshardedTokens], verb: str, arguments: list[tuple]
) -> list[torch.Tensor]:
    """Every rank sends, then every rank gets what all have sent."""
    for each, kept, mine in zip(played, found, arguments, strict=True):
        each.everyone = None
        with pytest.raises(InterruptedError):
            getattr(kept, verb)(*mine)
    for each in played:
        each.everyone = torch.stack([other.sent for other in played])
    return [getattr(kept, verb)(*mine) for kept, mine in zip(found, arguments, strict=True)]


def whole(shares: TokenScores) -> TokenScores:
    """The same sequence on one process."""
    return TokenScores(shares.by_shard.transpose(0, 1).flatten(1)[None], shares.energy)


@pytest.mark.parametrize("threshold, expected", [(0.0, None), (0.5, 4), (0.95, 2), (2.0, 2)])
def test_a_threshold_counts_the_sample_with_the_most(threshold, expected):
    scores = torch.tensor([[[0.9, 0.1, 0.2, 0.6, 0.1, 0.7], [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]]])
    options = TokensConfig(threshold=threshold, bucket=2, min_static_ratio=0)
    kept = choose_tokens(TokenScores(scores, torch.ones(2)), options, Played(0))
    assert (kept and kept.count) == expected


def test_few_static_tokens_are_not_worth_it():
    shares = TokenScores(torch.rand(1, 1, 10), torch.ones(1))
    options = {"keep_ratio": 0.8, "bucket": 1}
    assert choose_tokens(shares, TokensConfig(**options, min_static_ratio=0.2), Played(0)).count == 8
    assert choose_tokens(shares, TokensConfig(**options, min_static_ratio=0.25), Played(0)) is None


@pytest.mark.parametrize("balance", ["pad", "reshard"])
def test_one_token_at_least_is_computed_where_none_moves(balance):
    """Attention over several ranks takes no empty rows."""
    still = TokenScores(torch.zeros(2, 1, 8), torch.ones(1))
    options = TokensConfig(threshold=1.0, bucket=1, balance=balance)
    assert choose_tokens(still, options, Played(0)).count == 1
