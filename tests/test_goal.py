"""A goal says how many steps are computed, from what is known."""

from __future__ import annotations

import pytest

from fastcache_xdit import FastCacheConfig
from fastcache_xdit.goal import Goal, Known

NOTHING = Known()
PROMISES = Known({4: 28.0, 7: 35.0, 10: 41.0})
SECONDS = Known(seconds={5: 3.0, 20: 9.0})  # 1 s and 0.4 s for each computed step


@pytest.mark.parametrize(
    "budget, steps, computed",
    [(0.5, 20, 10), (0.5, 7, 3), (0.3, 10, 3), (0.35, 20, 7), (0.01, 20, 1), (1.0, 20, 20), (0.999, 20, 19)],
)
def test_a_budget_is_a_share_of_the_steps_that_is_not_exceeded(budget, steps, computed):
    assert Goal("budget", budget).computed(steps, NOTHING) == computed


def test_every_share_of_a_number_of_steps_gives_that_number():
    """Although n / T * T may fall short of n."""
    assert [Goal("budget", n / 49).computed(49, NOTHING) for n in range(1, 50)] == list(range(1, 50))


def test_quality_takes_the_fewest_steps_that_promise_it():
    assert [Goal("psnr", value).computed(20, PROMISES) for value in (20, 28, 30, 35.5, 41)] == [4, 4, 7, 10, 10]


def test_quality_that_nothing_promises_takes_all_steps():
    assert Goal("psnr", 41.1).computed(20, PROMISES) == 20


def test_quality_of_which_nothing_is_known_takes_half():
    assert Goal("psnr", 36).computed(21, NOTHING) == 10


def test_a_speedup_follows_the_straight_line_through_what_was_timed():
    # 9 s / 1.5 = 6 s = 1 s + 12.5 steps of 0.4 s
    assert Goal("speedup", 1.5).computed(20, SECONDS) == 12
    assert Goal("speedup", 3.0).computed(20, SECONDS) == 5
    assert Goal("speedup", 50.0).computed(20, SECONDS) == 1, "out of reach: as near as can be"


@pytest.mark.parametrize("seconds", [{}, {20: 9.0}, {5: 9.0, 20: 9.0}, {5: 9.5, 20: 9.0}])
def test_a_speedup_of_which_nothing_useful_is_known_is_a_share(seconds):
    assert Goal("speedup", 2.5).computed(20, Known(seconds=seconds)) == 8


@pytest.mark.parametrize(
    "options, goal",
    [({}, "budget 0.5"), ({"budget": 0.4}, "budget 0.4"), ({"speedup": 2.5}, "speedup 2.5"), ({"psnr": 36}, "psnr 36")],
)
def test_a_config_has_one_goal(options, goal):
    assert str(FastCacheConfig(**options).goal) == goal
