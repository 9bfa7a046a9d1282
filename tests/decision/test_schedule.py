"""Masks of computed steps."""

import pytest

from fastcache_xdit.decision.schedule import computed_steps, marks_at, skipped_steps, uniform_mask


def text(mask):
    return "".join("01"[computed] for computed in mask)


def test_a_listed_number_of_steps_takes_its_mask():
    assert text(computed_steps({4: "1010", 6: "100100"}, 6)) == "100100"


def test_another_number_stretches_the_nearest():
    assert text(computed_steps({4: "1010", 20: "1" * 20}, 8)) == "10001000"
    assert text(computed_steps({4: "1010"}, 2)) == "11"


def test_partial_marks_are_stretched_too_and_are_no_references():
    assert marks_at({4: "1p10"}, 4) == "1p10"
    assert marks_at({4: "1p10"}, 8) == "10p01000"
    assert marks_at({4: "1p1p"}, 2) == "11", "where they meet, the step is computed"
    assert text(computed_steps({4: "1p10"}, 4)) == "1010"


@pytest.mark.parametrize("steps, computed, expected", [(6, 3, "101010"), (8, 3, "10010100"), (5, 5, "11111")])
def test_uniform_masks_spread_the_computed_steps(steps, computed, expected):
    assert uniform_mask(steps, computed) == expected


def test_skips_look_back_to_all_computed_steps():
    assert skipped_steps([True, True, False, True, False, False]) == [(2, (1, 0)), (4, (3, 1, 0)), (5, (3, 1, 0))]
    assert skipped_steps([True, True]) == []
