"""Taking and putting undo each other, and ranks keep at least what one process would."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastcache_xdit.tokens.saliency import moving, token_change
from fastcache_xdit.tokens.selection import (
    bucketed,
    larger_of_branches,
    rank_count,
    select,
    select_global,
)
from tests.tokens.drawing import PROPERTY, random, scores, tokens


@st.composite
def token_picks(draw):
    """Tokens, and any selection of them, from empty to full."""
    x = draw(tokens())
    total = x.shape[1]
    return x, select(draw(scores(rows=len(x), total=total)), draw(st.integers(0, total)))


@st.composite
def shards(draw):
    """Gathered scores [R, B, n] of ranks that move unequally, and a count."""
    ranks, rows, length = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 10))
    gathered = torch.stack([draw(scores(rows, length)) for _ in range(ranks)])
    return gathered, draw(st.integers(0, ranks * length))


def test_the_most_salient_are_kept_in_order():
    picked = select(torch.tensor([[1.0, 5.0, 3.0, 5.0], [2.0, 2.0, 2.0, 2.0]]), 2)
    assert picked.index.tolist() == [[1, 3], [0, 1]]


@PROPERTY
@given(scores(), st.data())
def test_selection_agrees_with_sorting_by_hand(saliency, data):
    count = data.draw(st.integers(0, saliency.shape[1]))
    by_hand = [sorted(sorted(range(len(row)), key=lambda i: (-row[i], i))[:count]) for row in saliency.tolist()]
    assert select(saliency, count).index.tolist() == by_hand


@PROPERTY
@given(scores())
def test_a_full_selection_is_the_identity(saliency):
    everything = select(saliency, saliency.shape[1]).index
    assert torch.equal(everything, torch.arange(saliency.shape[1]).expand_as(everything))


def test_nan_is_kept_first():
    saliency = torch.tensor([[torch.inf, 1.0, torch.nan]])
    assert select(saliency, 1).index.tolist() == [[2]]
    assert select(saliency, 2).index.tolist() == [[0, 2]]


@pytest.mark.parametrize("count", [-1, 4])
def test_an_impossible_count_is_refused(count):
    with pytest.raises(ValueError, match=f"cannot keep {count} of 3 tokens"):
        select(torch.zeros(2, 3), count)


@PROPERTY
@given(token_picks())
def test_put_undoes_take(case):
    x, picked = case
    assert torch.equal(picked.put(picked.take(x), x), x)
    rows = picked.take(x).flip(0) + 1
    rest = x.clone()
    assert torch.equal(picked.take(picked.put(rows, rest)), rows)
    assert torch.equal(rest, x)


@PROPERTY
@given(token_picks())
def test_shared_inputs_are_taken_alike(case):
    x, picked = case
    table = random(0, x.shape[1], 3, 2)
    batched = picked.take(table.expand(len(x), -1, -1, -1))
    assert torch.equal(picked.look_up(table), batched)
    assert torch.equal(picked.take(table[None]), batched)


@pytest.mark.parametrize("count, rounded", [(0, 0), (1, 8), (8, 8), (9, 16), (17, 20), (20, 20)])
def test_counts_are_rounded_up_to_a_bucket(count, rounded):
    assert bucketed(count, 8, 20) == rounded


def test_guidance_branches_keep_the_same_tokens():
    shared = larger_of_branches(torch.tensor([[1.0, 5.0], [0.0, 2.0], [3.0, 4.0], [1.0, 1.0]]))
    assert shared.tolist() == [[3.0, 5.0], [1.0, 2.0]] * 2


def test_guidance_branches_come_in_pairs():
    with pytest.raises(ValueError, match="3 rows"):
        larger_of_branches(torch.zeros(3, 2))


@PROPERTY
@given(shards())
def test_the_global_selection_is_that_of_one_process(case):
    gathered, count = case
    whole = torch.cat(list(gathered), dim=1)
    assert torch.equal(select_global(gathered, count).index, select(whole, count).index)


@PROPERTY
@given(shards(), st.integers(1, 4))
def test_ranks_keep_what_one_process_would(case, size):
    gathered, count = case
    ranks, rows, length = gathered.shape
    kept = select_global(gathered, count)
    each = rank_count(kept, ranks, ranks * length, size)
    own = [select(local, each).index + rank * length for rank, local in enumerate(gathered)]
    together = torch.cat(own, dim=1)
    assert all(set(kept.index[row].tolist()) <= set(together[row].tolist()) for row in range(rows))
    assert each % size == 0 or each == length


@PROPERTY
@given(shards())
def test_no_rank_keeps_more_than_the_busiest_needs(case):
    gathered, count = case
    ranks, rows, length = gathered.shape
    kept = select_global(gathered, count)
    parts = [(kept.index[row] // length).bincount(minlength=ranks).max() for row in range(rows)]
    assert rank_count(kept, ranks, ranks * length, 1) == max(parts)


def test_nothing_is_read_back_from_the_device():
    """The meta device has no numbers: whatever asks for one fails, and so does a tensor made elsewhere."""
    x = torch.zeros(2, 12, 4, dtype=torch.bfloat16, device="meta")
    saliency = larger_of_branches(token_change(x, x))
    picked = select(saliency, 5)
    assert moving(saliency, saliency.mean(1), 0.1).device.type == "meta"
    assert picked.put(picked.take(x), x).shape == x.shape
    assert picked.look_up(x[0]).shape == (2, 5, 4)
    assert select_global(saliency.view(2, 3, 4).transpose(0, 1), 6).index.shape == (2, 6)
