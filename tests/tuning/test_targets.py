"""What users ask for."""

import pytest
from torch import nn

from fastcache_xdit.errors import UsageError
from fastcache_xdit.models.spec import BlockSpec
from fastcache_xdit.segments.segment import Block
from fastcache_xdit.tuning.coverage import Coverage, spans
from fastcache_xdit.tuning.search import affordable, compute_ratio
from fastcache_xdit.tuning.targets import Target, budget_of


def test_targets_are_kind_and_number():
    assert Target.parse("speedup=2.5") == ("speedup", 2.5)
    assert Target.parse("budget=0.4") == ("budget", 0.4)


@pytest.mark.parametrize("text", ["fast", "budget", "budget=1.5", "speedup=0.9", "psnr=high", "quality=3"])
def test_other_targets_are_refused_by_name(text):
    with pytest.raises(ValueError, match=f"target '{text}'"):
        Target.parse(text)


def test_budgets_count_lead_blocks():
    assert affordable(0.5, 20, 0, 12) == 10
    assert compute_ratio("1" * 10 + "0" * 10, 0, 12) == 0.5
    computed = affordable(0.5, 20, 1, 12)
    mask = "1" * computed + "0" * (20 - computed)
    assert compute_ratio(mask, 1, 12) <= 0.5 < compute_ratio("1" + mask[:-1], 1, 12)
    with pytest.raises(ValueError, match="leaves none of 20 steps; set at least 5%"):
        affordable(0.01, 20, 0, 12)


def test_segments_of_lead_blocks_and_stages():
    assert spans(12, [0, 1], [2]) == [(0, 5), (0, 11), (1, 5), (1, 11), (6, 11)]
    assert spans(7, [1], [2]) == [(1, 3), (1, 6), (4, 6)], "xDiT gives the first stage the larger half"


@pytest.mark.parametrize(
    "granularity, expected",
    [
        ("step", ["b.0..b.3", "b.1..b.3"]),
        ("group", ["b.0..b.3", "b.1..b.3", "b.0..b.1", "b.2..b.3", "b.1..b.2", "b.3..b.3"]),
        ("block", ["b.0..b.3", "b.1..b.3", *(f"b.{i}..b.{i}" for i in range(4))]),
    ],
)
def test_a_calibration_covers_pieces_beside_the_whole(granularity, expected):
    blocks = [Block(f"b.{index}", index, nn.Identity(), BlockSpec()) for index in range(4)]
    found = Coverage((0, 1), (), granularity, groups=2).segments(blocks)
    assert sorted(segment.key for segment in found) == sorted(expected)


@pytest.mark.parametrize("coverage", [Coverage(leads=(0, 4)), Coverage(stages=(5,))])
def test_a_coverage_fits_the_model(coverage):
    blocks = [Block(f"blocks.{index}", index, nn.Identity(), BlockSpec()) for index in range(4)]
    with pytest.raises(UsageError, match="do not fit 4 blocks; set lead_blocks to at most 3 and stages to at most 4"):
        coverage.segments(blocks)


def test_a_budget_from_two_timings():
    assert budget_of(10.0, 5.0, 2.5, 20) == pytest.approx(0.4)
    assert budget_of(10.0, 6.0, 1.5, 20) == pytest.approx((10 / 1.5 - 2) / 8)
    with pytest.raises(UsageError, match="out of reach at 20 steps: what is not blocks takes 20% of the time"):
        budget_of(10.0, 6.0, 4.9, 20)


@pytest.mark.parametrize("half", [10.0 / 8, 10.0, 12.0])
def test_timings_that_cannot_be_are_refused(half):
    with pytest.raises(UsageError, match="cannot be.*budget=NUMBER"):
        budget_of(10.0, half, 2.5, 20)
