"""Stages of merging undo themselves in reverse, and their outputs add up."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastcache_xdit.tokens.merging import merging
from fastcache_xdit.tokens.pyramid import pyramid
from tests.tokens.drawing import PROPERTY, merge_options, random, tokens

RATIOS = st.lists(st.sampled_from([0.25, 0.5, 0.7, 1.0]), max_size=3)


@PROPERTY
@given(tokens(), merge_options(), RATIOS, st.booleans())
def test_unmerging_the_levels_gives_the_tokens_back(x, options, ratios, moved):
    found = pyramid(x, x.roll(1, 1) if moved else None, ratios, *options[1:])
    levels = found.merge(x)
    assert len(levels) == len(ratios) + 1
    assert torch.equal(found.unmerge(levels[-1], levels), x)


def test_stages_are_merges_of_merges():
    x, before = random(0, 2, 2, 32, 4)
    found = pyramid(x, before, (0.5, 0.5), 8, 3, 1.0)
    first = merging(x, before, 0.5, 8, 3, 1.0)
    second = merging(first.merge(x), first.merge(before), 0.5, 8, 3, 1.0)
    assert torch.equal(found.stages[1].assignment, second.assignment)
    y = random(1, 2, 8, 4)
    fine = second.unmerge(y, first.merge(x), second.merge(first.merge(x)))
    assert torch.equal(found.unmerge(y, found.merge(x)), first.unmerge(fine, x, first.merge(x)))


def test_positions_follow_through_all_stages():
    x = random(0, 2, 32, 4)
    found = pyramid(x, None, (0.5, 1.0, 0.5), 8, 3, 0.0)
    first, _, last = found.stages
    index = first.centres.index.gather(1, last.centres.index)
    table = random(1, 32, 6)
    assert torch.equal(found.take_centres(table[None]), table[index])


@pytest.mark.parametrize("ratios", [(), (1.0,), (1.0, 1.0)])
def test_stages_that_keep_all_change_nothing(ratios):
    x = random(0, 2, 10, 3)
    found = pyramid(x, x, ratios, 4, 2, 1.0)
    levels = found.merge(x)
    assert all(level is x for level in levels)
    assert found.unmerge(x, levels) is x and found.take_centres(x) is x
