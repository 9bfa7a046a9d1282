"""Unfitted stand-ins against hand-computed values."""

import pytest
import torch

from fastcache_xdit.approx.linear import Past, Polynomial, Reference, line_weights, polynomial_weights, unfitted

NEWEST = Reference(4, None, torch.tensor([[[10.0, 40.0]]]))
OLDER = Reference(2, None, torch.tensor([[[6.0, 20.0]]]))
ENTERED = torch.zeros(1, 1, 2)


def residual(order, references, step, entered=ENTERED):
    return Polynomial(order).residual(
        "hidden_states", entered, Past(step, references, tuple(each.step for each in references))
    )


def test_reuse_takes_the_last_residual():
    assert residual(0, [NEWEST, OLDER], 5) is NEWEST.residual


@pytest.mark.parametrize("step, expected", [(5, [12.0, 50.0]), (6, [14.0, 60.0]), (7, [16.0, 70.0])])
def test_order_one_goes_on_in_a_straight_line(step, expected):
    # slopes (10-6)/2 = 2 and (40-20)/2 = 10 per step
    assert residual(1, [NEWEST, OLDER], step).flatten().tolist() == pytest.approx(expected)


def test_order_two_is_exact_for_a_parabola():
    kept = [Reference(step, None, torch.tensor([[[float(step**2), 3.0 * step]]])) for step in (7, 4, 2)]
    assert residual(2, kept, 9).flatten().tolist() == pytest.approx([81.0, 27.0])


def test_fewer_references_lower_the_order():
    assert residual(2, [NEWEST], 9) is NEWEST.residual
    assert torch.equal(residual(2, [NEWEST, OLDER], 6), residual(1, [NEWEST, OLDER], 6))


def test_weights_sum_to_one():
    assert sum(polynomial_weights([9, 7, 3], 11)) == pytest.approx(1.0)


def test_the_models_dtype_is_kept():
    kept = [Reference(step, None, torch.ones(1, 2, 4, dtype=torch.bfloat16) * step) for step in (3, 2, 1)]
    for order in (0, 1, 2):
        assert residual(order, kept, 4, ENTERED.bfloat16()).dtype == torch.bfloat16


def test_rounded_references_are_summed_in_the_models_dtype():
    kept = [Reference(step, None, torch.full((1, 1, 2), value).bfloat16()) for step, value in ((2, 256.0), (1, 255.0))]
    assert residual(1, kept, 5).flatten().tolist() == [259.0, 259.0], "258 and 260 are the nearest in bfloat16"


def test_unfitted_forms_fall_back_and_affine_is_refused():
    assert unfitted("delta").references == 1 and unfitted("delta+history").references == 2
    with pytest.raises(ValueError, match="'affine' needs a calibration file"):
        unfitted("affine")


@pytest.mark.parametrize("level", [0.6, 0.7, 0.8])
def test_two_references_at_one_noise_level_show_no_slope(level):
    """Heun's solver evaluates a level twice, and others nearly so."""
    assert line_weights([0.8, 0.8], level) == [1.0, 0.0]
    assert line_weights([0.8, 0.800001], level) == ([1.0, 0.0] if level < 0.8 else pytest.approx([1.0, 0.0]))
    assert line_weights([0.8, 0.9], level) == polynomial_weights([0.8, 0.9], level)
