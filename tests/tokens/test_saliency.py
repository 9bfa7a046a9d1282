"""The change of tokens is a plain squared distance, and what counts as motion does not depend on the model's scale."""

import pytest
import torch
from hypothesis import given

from fastcache_xdit.tokens.saliency import moving, token_change
from tests.tokens.drawing import BROKEN, PROPERTY, tokens


def test_change_by_hand():
    now, before = torch.tensor([[[3.0, 4.0], [1.0, 1.0]]]), torch.tensor([[[0.0, 0.0], [1.0, 0.0]]])
    assert token_change(now, before).tolist() == [[25.0, 1.0]]


def test_half_precision_is_summed_in_float32():
    now = torch.full((1, 1, 5000), 4.0, dtype=torch.float16)  # 80,000 is more than float16 holds
    assert token_change(now, torch.zeros_like(now)).tolist() == [[80_000.0]]


def test_a_token_moves_from_the_threshold_on():
    saliency, energy = torch.tensor([[0.0, 0.9, 1.0, 4.0], [0.0, 0.9, 1.0, 4.0]]), torch.tensor([10.0, 40.0])
    assert moving(saliency, energy, 0.1).tolist() == [[False, False, True, True], [False, False, False, True]]


@PROPERTY
@given(tokens(broken=True))
def test_at_threshold_zero_everything_moves(x):
    saliency = token_change(x, x)
    assert moving(saliency, x.float().square().sum(2).mean(1), 0.0).all()


@pytest.mark.parametrize("number", BROKEN)
def test_what_is_not_finite_moves(number):
    now = torch.ones(1, 3, 2)
    now[0, 1, 0] = number
    saliency = token_change(now, torch.ones(1, 3, 2))
    assert saliency.tolist() == [[0.0, torch.inf, 0.0]]
    assert moving(saliency, torch.tensor([2.0]), 0.5).tolist() == [[False, True, False]]
    assert moving(saliency, torch.tensor([number]), 0.5).all()
    assert moving(torch.tensor([[torch.nan]]), torch.tensor([2.0]), 0.5).all()


@PROPERTY
@given(tokens())
def test_scale_does_not_matter(x):
    """By a power of two, so that not one bit of a mantissa differs."""
    now, before = x.float(), x.float().roll(1, dims=1)
    energy = before.square().sum(2).mean(1)
    scaled = moving(token_change(now * 64, before * 64), energy * 64**2, 0.3)
    assert torch.equal(scaled, moving(token_change(now, before), energy, 0.3))
