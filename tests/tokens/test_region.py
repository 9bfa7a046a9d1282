"""The tokens of an edit: every one that holds a part of the mask, and no other."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastcache_xdit.tokens.region import tokens_inside
from tests.tokens.drawing import PROPERTY


def test_a_box_by_hand():
    mask = torch.zeros(8, 16)
    mask[2:5, 9:12] = 1
    inside = tokens_inside(mask, 32).view(4, 8)
    expected = torch.zeros(4, 8, dtype=torch.bool)
    expected[1:3, 4:6] = True
    assert torch.equal(inside, expected)


@PROPERTY
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 5), st.integers(0, 10**6))
def test_one_pixel_marks_its_own_token(rows, columns, scale, spot):
    mask = torch.zeros(rows * scale, columns * scale)
    row, column = divmod(spot % mask.numel(), mask.shape[1])
    mask[row, column] = -1
    inside = tokens_inside(mask, rows * columns).view(rows, columns)
    assert inside.nonzero().tolist() == [[row // scale, column // scale]]


@pytest.mark.parametrize("shape", [(8, 8), (1, 100)])
def test_a_mask_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=f"{shape[0]} x {shape[1]} does not fit 32 tokens"):
        tokens_inside(torch.zeros(shape), 32)
