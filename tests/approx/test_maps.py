"""Whole and low-rank affine maps: planted ones are recovered, arithmetic is that of a float64 reference."""

import pytest
import torch

from fastcache_xdit.approx.linear import Past
from fastcache_xdit.approx.maps import BUCKETS, Affine, Covariances, Maps, fit_maps

CHANNELS, ROWS, STREAM = 6, 500, "hidden_states"
GENERATOR = torch.Generator().manual_seed(3)
RANK_TWO = torch.randn(CHANNELS, 2, generator=GENERATOR) @ torch.randn(2, CHANNELS, generator=GENERATOR)
DIAGONAL = torch.linspace(-1, 1, CHANNELS)
BIAS = torch.arange(CHANNELS) / 3


def seen(seed, noise=0.0):
    """Covariances of R = (diag + rank two) H + b, one step for each bucket."""
    generator, sums = torch.Generator().manual_seed(seed), Covariances.empty(CHANNELS)
    entered = [1 + torch.randn(ROWS, CHANNELS, generator=generator) for _ in range(BUCKETS)]
    residuals = [DIAGONAL * h + h @ RANK_TWO.T + BIAS for h in entered]
    residuals = [left + noise * torch.randn(left.shape, generator=generator) for left in residuals]
    sums.add(residuals, entered)
    return sums


def stood_in(maps, rank, entered):
    stand_in = Affine({STREAM: maps}, rank)
    stand_in.begin([0.0] * 2 * BUCKETS)
    return stand_in.residual(STREAM, entered, Past(5, (), ()))


@pytest.fixture(scope="module")
def maps():
    return fit_maps(seen(0), seen(1))


def test_a_planted_map_is_recovered(maps):
    entered = torch.randn(2, 7, CHANNELS, generator=GENERATOR)
    expected = DIAGONAL * entered + entered @ RANK_TWO.T + BIAS
    torch.testing.assert_close(stood_in(maps, 10**6, entered), expected, atol=1e-3, rtol=1e-3)


def test_a_rank_below_the_planted_one_loses_and_the_whole_does_not(maps):
    entered = torch.randn(2, 7, CHANNELS, generator=GENERATOR)
    expected = DIAGONAL * entered + entered @ RANK_TWO.T + BIAS
    errors = [(stood_in(maps, rank, entered) - expected).norm().item() for rank in (1, 3, CHANNELS)]
    assert errors[0] > errors[1] > 10 * errors[2], "the diagonal fit takes a part, so that the rest is not of rank two"


def test_factors_and_their_product_give_the_same(maps):
    left, right = maps.low_rank(2, 2)
    whole = maps.low_rank(2, CHANNELS)
    assert left.shape == (CHANNELS, 2) and right.shape == (2, CHANNELS)
    torch.testing.assert_close(whole[0] @ whole[1], maps.matrix[2].float(), atol=1e-5, rtol=1e-4)


def test_it_is_the_float64_arithmetic_in_the_models_dtype(maps):
    entered = torch.randn(2, 7, CHANNELS, generator=GENERATOR)
    weight = torch.diag(maps.diagonal[2]) + maps.matrix[2]
    expected = maps.residual[2] + (entered.double() - maps.entered[2]) @ weight.T
    torch.testing.assert_close(stood_in(maps, CHANNELS, entered).double(), expected, atol=1e-5, rtol=1e-5)
    low = stood_in(maps, CHANNELS, entered.bfloat16())
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.double(), expected, atol=0.1, rtol=0.05)


def test_where_nothing_is_shared_between_channels_the_diagonal_stands():
    generator = torch.Generator().manual_seed(8)

    def noise(rows):
        sums = Covariances.empty(CHANNELS)
        entered = [torch.randn(rows, CHANNELS, generator=generator) for _ in range(BUCKETS)]
        sums.add([2 * h + torch.randn(h.shape, generator=generator) for h in entered], entered)
        return sums

    found = fit_maps(noise(8), noise(500))
    assert isinstance(found, Maps) and not found.matrix.any(), "eight rows teach nothing that holds elsewhere"
