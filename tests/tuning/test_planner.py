"""The dynamic programme against trying every mask."""

import itertools
import random

import pytest
import torch

from fastcache_xdit.approx.moments import Halves, Moments
from fastcache_xdit.tuning.planner import ErrorTable, plan

STEPS = 8
SIGMAS = tuple(1 - step / STEPS for step in range(STEPS))


@pytest.fixture(scope="module")
def table():
    """Residuals that wander: the longer ago the reference, the larger the error."""
    generator = torch.Generator().manual_seed(0)

    def wander():
        return list(torch.randn(STEPS, 60, 2, generator=generator).cumsum(0))

    halves = []
    for _ in range(2):
        moments = Moments.empty(SIGMAS, 2)
        moments.add(wander(), wander())
        halves.append(moments)
    return ErrorTable("history", Halves(*halves), longest_gap=STEPS)


def cost(table, gains, chosen, power):
    """What a mask costs, written out anew."""
    total = 0.0
    for place, j in enumerate(chosen):
        k = chosen[place - 1] if place else -1
        stop = chosen[place + 1] if place + 1 < len(chosen) else STEPS
        run = sum((gains[i] ** 2 * table[i, j, k]) ** (power / 2) for i in range(j + 1, stop))
        total += run ** (2 / power)
    return total


@pytest.mark.parametrize("coherence", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("computed", [2, 3, 5, 7])
def test_no_mask_is_better(table, computed, coherence):
    generator = random.Random(computed)
    gains = [generator.uniform(0.5, 2) for _ in range(STEPS)]
    masks = [(0, *rest) for rest in itertools.combinations(range(1, STEPS), computed - 1)]
    costs = {mask: cost(table, gains, mask, 2 - coherence) for mask in masks}
    best = min(costs, key=costs.__getitem__)
    found = plan(table, gains, computed, coherence)
    assert found.cost == pytest.approx(costs[best])
    assert found.mask == "".join("1" if step in best else "0" for step in range(STEPS))


def test_everything_computed_costs_nothing(table):
    assert plan(table, [1.0] * STEPS, STEPS) == (0.0, "1" * STEPS)


def test_a_gap_beyond_the_table_is_refused(table):
    short = ErrorTable.__new__(ErrorTable)
    short.steps, short.longest_gap, short._errors = STEPS, 2, table._errors
    with pytest.raises(ValueError, match="2 computed of 8 steps leave gaps longer than 2"):
        plan(short, [1.0] * STEPS, 2)
