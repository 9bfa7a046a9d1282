"""Decisions from plain numbers: hard limits, a test, and the budget."""

import math

import pytest

from fastcache_xdit.clock import FUSED, Tick
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.decision.evidence import Decision, Evidence, Track
from fastcache_xdit.decision.policy import decide, planned_skips
from fastcache_xdit.decision.significance import Verdict
from fastcache_xdit.options import TokensConfig

CONFIG = FastCacheConfig(
    test="paper", error_budget=0.15, error_decay=0.5, warmup_steps=2, cooldown_steps=1, max_consecutive_skips=3
)


class Bounded:
    """A test for which a skip causes the change that it sees, and 10 % is too much."""

    def ask(self, evidence, tick):
        return Verdict(evidence.change, not evidence.change < 0.1)


TEST = Bounded()


def tick(step=5, num_steps=20):
    return Tick(FUSED, None, step, num_steps)


@pytest.mark.parametrize(
    "evidence, at, reason",
    [
        (Evidence(math.inf, 0, Track()), tick(), "no reference"),
        (Evidence(math.nan, 2, Track()), tick(), "not finite"),
        (Evidence(0.01, 2, Track()), tick(step=1), "warm-up"),
        (Evidence(0.01, 2, Track()), tick(step=19), "cool-down"),
        (Evidence(0.01, 2, Track(skipped=3)), tick(), "longest run"),
        (Evidence(0.1, 1, Track()), tick(), "significant"),
        (Evidence(0.05, 1, Track(accumulated=0.22)), tick(), "budget"),
        (Evidence(0.01, 2, Track(), scheduled=True), tick(), "schedule"),
    ],
)
def test_what_forces_computing(evidence, at, reason):
    decision = decide(evidence, at, CONFIG, TEST)
    assert (decision.skip, decision.reason) == (False, reason)


@pytest.mark.parametrize(
    "limits, skipped",
    [
        ({}, "0110010111"),
        ({"warmup_steps": 3}, "0000010111"),
        ({"cooldown_steps": 1}, "0110010110"),
        ({"max_consecutive_skips": 1}, "0100010101"),
    ],
)
def test_hard_limits_stand_above_what_a_mask_foresees(limits, skipped):
    free = {"warmup_steps": 1, "cooldown_steps": 0, "max_consecutive_skips": 9, **limits}
    config = FastCacheConfig(test="none", schedule={10: "1001101000"}, **free)
    assert "".join("01"[each] for each in planned_skips("1001101000", config)) == skipped


def test_a_small_change_is_skipped():
    assert decide(Evidence(0.05, 1, Track()), tick(), CONFIG, TEST) == Decision(True, "insignificant", 0.05, 0.05)
    assert decide(Evidence(0.05, 1, Track()), tick(num_steps=None), CONFIG, TEST).skip, "no known end, no cool-down"


PARTIAL = CONFIG.model_copy(update={"tokens": TokensConfig(keep_ratio=0.25)})


@pytest.mark.parametrize(
    "evidence, at, partial",
    [
        (Evidence(0.12, 1, Track()), tick(), True),
        (Evidence(0.05, 1, Track(), scheduled_part=True), tick(), True),
        (Evidence(0.12, 1, Track(), scheduled_part=True), tick(), True),
        (Evidence(0.05, 1, Track()), tick(), False),
        (Evidence(math.inf, 0, Track()), tick(), False),
        (Evidence(0.12, 1, Track()), tick(step=1), False),
        (Evidence(0.12, 1, Track()), tick(step=19), False),
        (Evidence(0.12, 1, Track(skipped=3)), tick(), False),
        (Evidence(0.12, 1, Track(accumulated=0.22)), tick(), False),
        (Evidence(0.12, 1, Track(), scheduled=True), tick(), False),
    ],
)
def test_a_part_is_computed_where_nothing_hard_wants_the_whole(evidence, at, partial):
    assert decide(evidence, at, PARTIAL, TEST).partial == partial
    assert not decide(evidence, at, CONFIG, TEST).partial


def test_where_parts_are_only_scheduled_the_test_wants_the_whole():
    config = CONFIG.model_copy(update={"tokens": TokensConfig(keep_ratio=0.25, when="scheduled")})
    assert not decide(Evidence(0.12, 1, Track(), scheduled_part=True), tick(), config, TEST).partial
    assert decide(Evidence(0.05, 1, Track(), scheduled_part=True), tick(), config, TEST).partial


def test_a_partial_step_counts_as_spared_until_it_turns_out_whole():
    state, decision = Track(skipped=1), Decision(False, "significant", 0.1, 0.1, partial=True)
    state.note(decision, decay=0.5)
    state.correct(decision)
    assert (state.skipped, state.accumulated) == (2, 0.1)
    state.correct(decision._replace(partial=False))
    assert (state.skipped, state.accumulated) == (0, 0.0)


def test_a_budget_of_zero_skips_nothing_that_changed():
    config = CONFIG.model_copy(update={"error_budget": 0.0})
    assert not decide(Evidence(1e-9, 2, Track()), tick(), config, TEST).skip


def test_track_accumulates_over_skips_and_clears_on_compute():
    state = Track()
    for _ in range(2):
        state.note(Decision(True, "insignificant", 0.05, 0.04), decay=0.5)
    assert (state.skipped, state.accumulated) == (2, pytest.approx(0.5 * 0.04 + 0.04))
    state.note(Decision(False, "significant", 0.2, 0.3), decay=0.5)
    assert (state.skipped, state.accumulated) == (0, 0.0)
