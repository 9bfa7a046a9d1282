"""Frontiers and margins, by hand."""

import pytest

from fastcache_xdit.bench.peers.curves import draw_study
from fastcache_xdit.bench.peers.frontier import at_budget, frontier, margins
from tests.bench.peers.rows import row, study

ROWS = [row("other", "a", 1.0, 60.0), row("other", "b", 0.25, 30.0), row("other", "worse", 0.5, 20.0)]


def test_a_frontier_leaves_out_what_another_setting_beats():
    assert [each["setting"] for each in frontier(ROWS)] == ["b", "a"]


def test_half_way_in_log_compute_is_half_way_in_db():
    assert at_budget(ROWS, 0.5) == pytest.approx(45.0)


def test_of_ours_only_what_can_be_run_counts():
    assert (
        at_budget([row("FastCache, tuned", each["setting"], each["compute"], 40.0) for each in ROWS[1:]], 0.4) == 40.0
    )
    assert at_budget([row("FastCache, tuned", "a", 1.0, 60.0), row("FastCache, tuned", "b", 0.25, 30.0)], 0.5) == 30.0


def test_a_budget_below_the_cheapest_setting_is_not_reached():
    assert at_budget(ROWS, 0.2) is None


def test_a_budget_that_a_setting_meets_is_its_own():
    assert at_budget(ROWS, 0.2499) == 30.0
    assert at_budget(ROWS[:1], 1.0) == 60.0


def test_margins_name_the_best_other(tmp_path):
    ours = [row("FastCache, tuned", "half", 0.5, 50.0), row("FastCache, tuned", "fifth", 0.2, 35.0)]
    ours[0]["scores"]["prompt_accuracy"] = 0.9
    found = {each.budget: each for each in margins(study(tmp_path, *ours, *ROWS))}
    assert found["1/2"].peer == "other"
    assert found["1/2"].ahead == pytest.approx(5.0)
    assert found["1/2"].accuracy == 0.9
    assert found["1/5"].ours == 35.0
    assert found["1/5"].ahead is None


def test_a_margin_is_also_told_at_the_compute_that_ours_takes(tmp_path):
    found = {each.budget: each for each in margins(study(tmp_path, row("FastCache, tuned", "a", 0.25, 35.0), *ROWS))}
    assert found["1/2"].ahead == pytest.approx(35.0 - 45.0)
    assert found["1/2"].ahead_as_cheap == found["1/4"].ahead == pytest.approx(5.0)
    assert found["1/5"].ahead_as_cheap is None


def test_the_figure_is_drawn(tmp_path):
    assert draw_study(study(tmp_path, *ROWS)).stat().st_size > 10_000


def test_nothing_is_said_of_the_best_other_where_some_are_not_installed(tmp_path):
    missing = {"peer": "cache-dit DBCache", "setting": "a", "status": "not installed", "package": "cache-dit"}
    found = study(tmp_path, row("FastCache, tuned", "half", 0.5, 50.0), *ROWS, missing | {"scores": None})
    assert found.missing() == ["cache-dit"]
    assert all(each.ahead is None and not each.peer for each in margins(found))
