"""Stand-ins against hand-computed values."""

import pytest
import torch

from fastcache_xdit.approx.linear import REFERENCES, STAND_INS, Residual, history, reuse

NEWEST = Residual(4, torch.tensor([[[10.0, 40.0]]]))
OLDER = Residual(2, torch.tensor([[[6.0, 20.0]]]))


def test_reuse_takes_the_last_residual():
    assert reuse([NEWEST, OLDER], 5) is NEWEST.value


@pytest.mark.parametrize("step, expected", [(5, [12.0, 50.0]), (6, [14.0, 60.0]), (7, [16.0, 70.0])])
def test_history_goes_on_in_a_straight_line(step, expected):
    # slopes (10-6)/2 = 2 and (40-20)/2 = 10 per step
    assert history([NEWEST, OLDER], step).flatten().tolist() == pytest.approx(expected)


def test_history_with_one_reference_is_reuse():
    assert history([NEWEST], 9) is NEWEST.value


def test_history_is_exact_for_residuals_linear_in_the_step():
    slope, start = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    kept = [Residual(step, start + step * slope) for step in (7, 3)]
    torch.testing.assert_close(history(kept, 10), start + 10 * slope)


def test_the_models_dtype_is_kept():
    kept = [Residual(step, torch.ones(1, 2, 4, dtype=torch.bfloat16) * step) for step in (2, 1)]
    assert all(stand_in(kept, 3).dtype == torch.bfloat16 for stand_in in STAND_INS.values())
    assert set(REFERENCES) == set(STAND_INS)
