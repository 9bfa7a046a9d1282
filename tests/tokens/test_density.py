"""Density and importance against sums by hand; neither scale nor padding nor broken numbers bend them."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from fastcache_xdit.tokens.density import density, importance, neighbourhood
from fastcache_xdit.tokens.windows import Windows
from tests.tokens.drawing import PROPERTY, merge_options, random, tokens


def near(x, window, ratio=0.5):
    return neighbourhood(x, Windows.of(x.shape[1], window, ratio))


def density_by_hand(row, window, neighbours):
    """One sample [N, D] in float64, by loops."""
    found = []
    for i, token in enumerate(row):
        start = i // window * window
        local = row[start : start + window]
        energy = local.square().sum() / len(local)
        apart = (local - token).square().sum(1) / energy.clamp_min(1e-30)
        others = sorted(apart[j].item() for j in range(len(local)) if start + j != i)[:neighbours]
        found.append(math.exp(-sum(others) / max(1, len(others))))
    return found


@PROPERTY
@given(tokens(max_tokens=16), st.integers(1, 20), st.integers(1, 8))
def test_density_is_the_papers_sum(x, window, neighbours):
    by_hand = [density_by_hand(row.double(), window, neighbours) for row in x]
    torch.testing.assert_close(density(near(x, window), neighbours), torch.tensor(by_hand), atol=1e-5, rtol=1e-4)


def test_temporal_change_raises_importance():
    """Two tokens of energy 1 in one window, equal: density 1; the second moved by 2 units."""
    now, before = torch.tensor([[[1.0], [1.0]]]), torch.tensor([[[1.0], [-1.0]]])
    assert importance(now, before, near(now, 2), 1, 0.5).tolist() == [[1.0, 2.0]]
    assert importance(now, None, near(now, 2), 1, 0.5).tolist() == [[1.0, 1.0]]


@PROPERTY
@given(merge_options(), st.integers(0, 1000))
def test_importance_is_scale_free(options, seed):
    ratio, window, neighbours, weight = options
    now, before = random(seed, 2, 2, 30, 4)
    small = importance(now, before, near(now, window), neighbours, weight)
    large = importance(now * 1024, before * 1024, near(now * 1024, window), neighbours, weight)
    torch.testing.assert_close(small, large, rtol=1e-6, atol=0)


@PROPERTY
@given(tokens(broken=True), merge_options())
def test_importance_is_positive_and_finite_whatever_the_tokens(now, options):
    _, window, neighbours, weight = options
    for before in (None, now.roll(1, 1), torch.zeros_like(now)):
        found = importance(now, before, near(now, window), neighbours, weight)
        assert found.dtype == torch.float32 and (found > 0).all() and found.isfinite().all()


def test_equal_tokens_lie_at_distance_zero():
    """Also where a matrix product would round: large common offset, many channels."""
    x = (random(0, 1, 1, 512) + 100).expand(1, 40, 512)
    assert (near(x, 40).distance == 0).all()
