"""The tests against hand-computed values and scipy's distribution."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chi2

from fastcache_xdit.clock import FUSED, Tick
from fastcache_xdit.decision.evidence import Evidence, Track
from fastcache_xdit.decision.significance import Calibrated, NoTest, Paper, Spread, quantile


def ask(test, change=0.1, step=0, motion=0.0, skipped=0, values=1):
    return test.ask(Evidence(change, 1, Track(skipped), motion, values), Tick(FUSED, None, step, 20))


def test_the_papers_rule_is_vacuous_for_a_real_model():
    values = 4096 * 3072
    assert quantile(0.05, values) == pytest.approx(1.0, abs=1e-3)
    assert not ask(Paper(0.05), change=0.99, values=values).significant, "99 % of the states changed, yet skipped"
    assert ask(Paper(0.05), change=1.01, values=values).significant
    assert quantile(0.05, 4) == pytest.approx(9.4877 / 4, rel=1e-4)  # a table's 95 % quantile for 4 degrees


SPREAD = Spread((0.9, 0.5, 0.1), (0.04, 0.01, 0.01), (1.0, 2.0), (1.0, 0.5, 0.0, 0.0), 4.0)


def test_the_expected_error_multiplies_its_factors():
    # 0.04 * run factor 2 * (1 + 0.5 * 0.2) * 0.1^2
    assert SPREAD.expected(0, 0.1, 0.2, 5) == pytest.approx(0.04 * 2.0 * 1.1 * 0.01)


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.2])
def test_a_change_is_insignificant_up_to_the_quantile(alpha):
    test = Calibrated(alpha, 0.02, SPREAD)
    edge = 0.02 * math.sqrt(chi2.ppf(1 - alpha, 4) / 4 / 0.04)  # change where dof * expected / tolerance^2 meets it
    assert not ask(test, change=edge * 0.999).significant
    assert ask(test, change=edge * 1.001).significant


def test_a_tolerance_below_rounding_is_taken_to_be_rounding():
    noisy = replace(SPREAD, noise=0.05)
    asked, limited = Calibrated(0.05, 0.02, noisy), Calibrated(0.05, 0.05, SPREAD)
    changes = np.linspace(0.01, 1.0, 50)
    assert [ask(asked, change=each) for each in changes] == [ask(limited, change=each) for each in changes]


def test_a_smaller_alpha_skips_more():
    limits = [Calibrated(alpha, 0.02, SPREAD).limit for alpha in (0.2, 0.05, 0.01)]
    assert limits == sorted(limits)


def test_the_promise_holds_for_errors_of_the_spread():
    draws = np.random.default_rng(0).chisquare(4.0, 200_000) / 4
    assert SPREAD.exceeds(0.0003, 0.02) == pytest.approx((0.0003 * draws > 0.02**2).mean(), abs=0.005)
    assert SPREAD.exceeds(0.0, 0.02) == 0.0


def test_other_schedules_are_interpolated_in_the_noise_level():
    between = SPREAD.at([0.7, 0.5, 0.3])
    assert between.null == pytest.approx((0.02, 0.01, 0.01))  # halfway between 0.04 and 0.01 in logarithms
    assert Spread.from_dict(SPREAD.to_dict()) == SPREAD


def test_without_a_test_nothing_is_significant():
    assert ask(NoTest(), change=5.0) == (0.0, False)
