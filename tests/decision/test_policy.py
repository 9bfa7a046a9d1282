"""Decisions from plain numbers: hard limits, threshold, budget, and the online error model."""

import math

import pytest

from fastcache_xdit.clock import FUSED, Tick
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.decision.evidence import Decision, Evidence, Track
from fastcache_xdit.decision.policy import decide, planned_skips
from fastcache_xdit.decision.significance import Online
from fastcache_xdit.options import TokensConfig

CONFIG = FastCacheConfig(
    threshold=0.1, error_budget=0.15, error_decay=0.5, warmup_steps=2, cooldown_steps=1, max_consecutive_skips=3
)
TEST = Online(CONFIG.threshold)


def tick(step=5, num_steps=20):
    return Tick(FUSED, None, step, num_steps)


def track(observed=(), **values):
    made = Track.empty(4)
    made.observed.extend(observed)
    for name, value in values.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    "evidence, at, reason",
    [
        (Evidence(math.inf, 0, track()), tick(), "no reference"),
        (Evidence(math.nan, 2, track()), tick(), "not finite"),
        (Evidence(0.01, 2, track()), tick(step=1), "warm-up"),
        (Evidence(0.01, 2, track()), tick(step=19), "cool-down"),
        (Evidence(0.01, 2, track(skipped=3)), tick(), "longest run"),
        (Evidence(0.1, 1, track()), tick(), "significant"),
        (Evidence(0.05, 1, track(accumulated=0.22)), tick(), "budget"),
        (Evidence(0.01, 2, track(), scheduled=True), tick(), "schedule"),
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
    assert decide(Evidence(0.05, 1, track()), tick(), CONFIG, TEST) == Decision(True, "insignificant", 0.05, 0.05)
    assert decide(Evidence(0.05, 1, track()), tick(num_steps=None), CONFIG, TEST).skip, "no known end, no cool-down"


PARTIAL = CONFIG.model_copy(update={"tokens": TokensConfig(keep_ratio=0.25)})


@pytest.mark.parametrize(
    "evidence, at, partial",
    [
        (Evidence(0.12, 1, track()), tick(), True),
        (Evidence(0.05, 1, track(), scheduled_part=True), tick(), True),
        (Evidence(0.12, 1, track(), scheduled_part=True), tick(), True),
        (Evidence(0.05, 1, track()), tick(), False),
        (Evidence(math.inf, 0, track()), tick(), False),
        (Evidence(0.12, 1, track()), tick(step=1), False),
        (Evidence(0.12, 1, track()), tick(step=19), False),
        (Evidence(0.12, 1, track(skipped=3)), tick(), False),
        (Evidence(0.12, 1, track(accumulated=0.22)), tick(), False),
        (Evidence(0.12, 1, track(), scheduled=True), tick(), False),
    ],
)
def test_a_part_is_computed_where_nothing_hard_wants_the_whole(evidence, at, partial):
    assert decide(evidence, at, PARTIAL, TEST).partial == partial
    assert not decide(evidence, at, CONFIG, TEST).partial


def test_where_parts_are_only_scheduled_the_test_wants_the_whole():
    config = CONFIG.model_copy(update={"tokens": TokensConfig(keep_ratio=0.25, when="scheduled")})
    assert not decide(Evidence(0.12, 1, track(), scheduled_part=True), tick(), config, TEST).partial
    assert decide(Evidence(0.05, 1, track(), scheduled_part=True), tick(), config, TEST).partial


def test_a_partial_step_counts_as_spared_until_it_turns_out_whole():
    state, decision = track(skipped=1), Decision(False, "significant", 0.1, 0.1, partial=True)
    state.note(decision, decay=0.5)
    state.correct(decision)
    assert (state.skipped, state.accumulated) == (2, 0.1)
    state.correct(decision._replace(partial=False))
    assert (state.skipped, state.accumulated) == (0, 0.0)


def test_threshold_zero_skips_nothing_even_when_nothing_changed():
    config = FastCacheConfig(threshold=0)
    assert not decide(Evidence(0.0, 2, track()), tick(), config, Online(0)).skip


def test_track_accumulates_over_skips_and_clears_on_compute():
    state = track()
    for _ in range(2):
        state.note(Decision(True, "insignificant", 0.05, 0.04), decay=0.5)
    assert (state.skipped, state.accumulated) == (2, pytest.approx(0.5 * 0.04 + 0.04))
    state.note(Decision(False, "significant", 0.2, 0.3), decay=0.5)
    assert (state.skipped, state.accumulated, state.last_change) == (0, 0.0, 0.2)


def test_only_finite_observations_are_kept_and_the_window_slides():
    state = Track.empty(2)
    state.observe(0.1)
    assert not state.observed, "no change was seen before the first reference"
    for change in (0.1, 0.2, 0.3):
        state.last_change = change
        state.observe(change / 10)
    state.observe(math.nan)
    assert list(state.observed) == [(0.2, 0.02), (0.3, pytest.approx(0.03))]


def test_a_copy_is_independent():
    state = track([(0.1, 0.01)], skipped=1)
    other = state.copy()
    other.observed.clear()
    other.note(Decision(False, "significant"), 1.0)
    assert list(state.observed) == [(0.1, 0.01)] and state.skipped == 1 and other.observed.maxlen == 4
