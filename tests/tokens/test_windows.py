"""Splitting into windows loses nothing, and how many tokens remain follows from sizes alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastcache_xdit.tokens.windows import Windows
from tests.tokens.drawing import PROPERTY, tokens

CPU = torch.device("cpu")
RATIOS = st.floats(0.01, 1.0)


@PROPERTY
@given(tokens(), st.integers(1, 50), RATIOS)
def test_joining_undoes_splitting(x, size, ratio):
    windows = Windows.of(x.shape[1], size, ratio)
    split = windows.split(x)
    assert split.shape[:3] == (len(x), len(windows.lengths(CPU)), windows.size)
    assert torch.equal(windows.join(split), x)
    assert (split.flatten(1, 2)[:, x.shape[1] :] == 0).all()


@PROPERTY
@given(st.integers(1, 300), st.integers(1, 80), RATIOS)
def test_sizes_add_up(total, size, ratio):
    windows = Windows.of(total, size, ratio)
    lengths, keeps = windows.lengths(CPU), windows.keeps(CPU)
    assert lengths.sum() == total and keeps.sum() == windows.merged
    assert (keeps >= 1).all() and (keeps <= lengths).all()
    assert windows.merged == total or ratio < 1


def test_a_short_last_window_keeps_its_share():
    windows = Windows.of(100, 64, 0.25)
    assert windows.keeps(CPU).tolist() == [16, 9]
    assert windows.merged == 25


@pytest.mark.parametrize("size, ratio, word", [(0, 0.5, "window of 0"), (4, 0.0, "merge to 0.0"), (4, 1.5, "1.5")])
def test_impossible_windows_are_refused(size, ratio, word):
    with pytest.raises(ValueError, match=word):
        Windows.of(10, size, ratio)
