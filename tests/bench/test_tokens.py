"""Masks of the benchmark of partial steps spend what they may."""

from __future__ import annotations

import pytest

from fastcache_xdit.bench.choices import BUDGETS
from fastcache_xdit.bench.tokens import KEPT, partial_mask, region_mask
from fastcache_xdit.tuning.search import compute_ratio


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("steps", [20, 30, 50])
def test_a_budget_is_spent_on_whole_and_partial_steps(steps, budget):
    mask = partial_mask(steps, budget, KEPT)
    assert len(mask) == steps and mask.startswith("1") and "p" in mask
    spent = compute_ratio(mask, 0, 12, partial=KEPT)
    assert spent == pytest.approx(budget, abs=1.5 / steps) or "0" not in mask


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("steps", [20, 30, 50])
@pytest.mark.parametrize("cost", [0.0625, 0.125])
def test_an_edit_spends_no_more_than_its_budget(steps, budget, cost):
    mask = region_mask(steps, budget, cost)
    assert len(mask) == steps and mask.startswith("1") and set(mask) == {"1", "p"}
    assert budget - 1 / steps < compute_ratio(mask, 0, 12, partial=cost) <= budget


def test_marks_by_hand():
    assert partial_mask(8, 0.5, 0.5) == "1p0p1pp0"
    assert region_mask(8, 0.5, 0.2) == "1pp1p1pp"
