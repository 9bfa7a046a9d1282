"""The arithmetic of each cache that was written after its paper, by hand."""

import itertools
import math

import pytest
import torch

from fastcache_xdit.bench.peers.papers.calls import CallCounter
from fastcache_xdit.bench.peers.papers.change import AccumulatedChange
from fastcache_xdit.bench.peers.papers.dpcache import cheapest_path, cost_of, line
from fastcache_xdit.bench.peers.papers.eb_cache import exposure_factor
from fastcache_xdit.bench.peers.papers.forecast import History, reuse
from fastcache_xdit.bench.peers.papers.hicache import differences, hermite, scaled_hermite
from fastcache_xdit.bench.peers.papers.l2p import PUBLISHED, closed_loop, dense_first, open_loop
from fastcache_xdit.bench.peers.solvers import steps_for


def linear_products(steps):
    """Products of features a + b t, of independent a and b."""
    features = torch.tensor([[1.0, 0.3 * step] for step in range(steps)], dtype=torch.float64)
    return features @ features.T


def test_histories_keep_what_they_should():
    history = History(reuse, length=2)
    for step in range(4):
        history.keep(step, torch.tensor([float(step)]))
    assert history.steps == [2, 3]
    assert history.estimate(4).item() == 3
    assert history.steps == [2, 3]
    whole = History(lambda kept, step: [1.0] * len(kept), with_estimates=True)
    whole.keep(0, (torch.tensor([1.0]), torch.tensor([2.0])))
    assert [part.item() for part in whole.estimate(1)] == [1, 2]
    assert [part.item() for part in whole.estimate(2)] == [2, 4]
    assert whole.steps == [0, 1, 2]


def test_calls_are_counted_by_step_and_branch():
    begun, found = [], []
    counter = CallCounter(lambda: begun.append(True))
    for timestep in (900.0, 900.0, 500.0, 500.0, 900.0, 500.0):
        counter.count(timestep)
        found.append((counter.step, counter.branch))
    assert found == [(0, 0), (0, 1), (1, 0), (1, 1), (0, 0), (1, 0)]
    assert len(begun) == 2


def test_masks_have_the_published_shape():
    assert [step for step, mark in enumerate(dense_first(50, 11)) if mark == "1"] == list(PUBLISHED[:-1])
    for steps, computed in itertools.product((4, 8, 20, 30), (1, 2, 4)):
        mask = dense_first(steps, computed)
        assert (len(mask), mask.count("1"), mask[0]) == (steps, computed, "1")
    assert dense_first(20, 20) == "1" * 20


def test_learnt_weights_reproduce_a_linear_history():
    products, mask = linear_products(8), "11001000"
    weights = closed_loop(products, mask, ridge=1e-9)
    features = torch.tensor([[1.0, 0.3 * step] for step in range(8)], dtype=torch.float64)
    history = History(lambda kept, step: weights[step, : len(kept)].tolist(), with_estimates=True)
    for step, mark in enumerate(mask):
        if mark == "1":
            history.keep(step, features[step])
        else:
            torch.testing.assert_close(history.estimate(step), features[step], atol=1e-4, rtol=0)
    assert torch.equal(weights, closed_loop(products, mask, ridge=1e-9))


def test_published_training_begins_with_reuse_and_comes_nearer():
    products = linear_products(6)
    weights = open_loop(products)
    assert torch.equal(weights, weights.tril(-1))

    def loss(weights):
        error = (torch.eye(6, dtype=torch.float64) - weights)[2:]  # what two steps before suffice for
        return torch.einsum("ij,jk,ik->", error, products, error)

    assert loss(weights) < 0.1 * loss(torch.eye(6, dtype=torch.float64).roll(1, 0).tril(-1))
    assert torch.equal(weights, open_loop(products))


def test_hermite_coefficients():
    assert [scaled_hermite(order, 3.0) for order in range(4)] == pytest.approx(
        [1, 0.5 * 2 * 1.5, 0.25 * (4 * 1.5**2 - 2), 0.125 * (8 * 1.5**3 - 12 * 1.5)]
    )
    assert differences([0, 2, 5], 1) == pytest.approx([0, -1 / 3, 1 / 3])
    assert differences([0, 2, 5], 2) == pytest.approx([1 / 6, -1 / 6 - 1 / 9, 1 / 9])
    assert hermite([4], 6) == [1]
    slope = scaled_hermite(1, 2) / 3
    assert hermite([1, 4], 6) == pytest.approx([-slope, 1 + slope])


def test_the_path_is_the_cheapest_of_all():
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(7, 5, generator=draw, dtype=torch.float64).cumsum(0)
    cost = cost_of(features @ features.T)

    def total(path):
        stops = [None, *path, 7]
        return sum(cost(*stops[place : place + 3]) for place in range(len(path)))

    for computed in range(1, 6):
        paths = [(0, *rest) for rest in itertools.combinations(range(1, 7), computed - 1)]
        assert total(cheapest_path(cost, 7, computed)) == pytest.approx(min(map(total, paths)))


def test_the_line_costs_nothing_where_it_is_exact():
    cost = cost_of(linear_products(6))
    assert cost(0, 1, 6) == pytest.approx(0, abs=1e-6)
    assert cost(None, 1, 6) > 0.1
    assert line([0, 1, 3], 5) == pytest.approx([0, -1, 2])


def test_the_exposure_factor_at_its_ends():
    assert exposure_factor(1.0) == pytest.approx(1)
    assert exposure_factor(0.4) == pytest.approx(0.98 + 0.02 * math.exp(-5))
    assert exposure_factor(0.4 - 1e-9) == pytest.approx(0.98)
    assert exposure_factor(0.0) == pytest.approx(0.96 + 0.02 * math.exp(-10 / 3))


@pytest.mark.parametrize(("from_computed", "skipped"), [(False, [0, 0, 1, 1, 1, 0]), (True, [0, 0, 1, 1, 0, 1])])
def test_a_step_is_skipped_while_the_expected_change_is_small(from_computed, skipped):
    """The input moves by 1 a step, the output by 1 at first, from 10: a tenth is expected of each step."""
    rule, made = AccumulatedChange(0.35, from_computed), []
    for step in range(6):
        states = torch.full((2,), float(step))
        made.append(int(rule.may_skip(states, forced=step == 0)))
        if not made[-1]:
            rule.computed(states, states + 9)
    assert made == skipped
    rule.begin()
    assert not rule.may_skip(states, forced=False)


def test_steps_of_heun_take_two_evaluations_but_for_the_last():
    assert [steps_for("Heun", count) for count in (4, 5, 10, 13)] == [2, 3, 5, 7]
    assert steps_for("Euler", 10) == 10
