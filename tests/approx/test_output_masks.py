"""The dynamic programme against every mask there is, whose costs are summed up from the outputs themselves."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from fastcache_xdit.approx.linear import polynomial_weights
from fastcache_xdit.approx.moments import Halves, Moments
from fastcache_xdit.approx.output_masks import LONGEST_GAP, RIDGE, OutputMasks

STEPS, ROWS = 7, 60
SIGMAS = (1.0, 0.93, 0.85, 0.7, 0.5, 0.3, 0.1)


def drawn(seed, steps=STEPS):
    """[T, n]: outputs that move more at some steps than at others."""
    draw = np.random.default_rng(seed)
    moves = draw.normal(size=(steps, ROWS)) * draw.uniform(0.1, 1.0, size=(steps, 1))
    return draw.normal(size=ROWS) + moves.cumsum(axis=0)


def planner(outputs, effects, sigmas=SIGMAS):
    halves = []
    for part in (slice(0, ROWS // 2), slice(ROWS // 2, None)):  # both halves count
        moments = Moments.empty(sigmas, 1)
        states = [torch.tensor(row[part, None]) for row in outputs]
        moments.add(states, [torch.zeros_like(states[0])] * len(states))
        halves.append(moments)
    return OutputMasks(Halves(*halves), effects)


def cost_of(mask, outputs, effects):
    """Sum over runs of skipped steps: what the two outputs before the run cannot make good of its summed error."""
    cost, computed = 0.0, []
    for mark, run in itertools.groupby(range(len(mask)), key=lambda step: mask[step]):
        steps = list(run)
        if mark == "1":
            computed += steps
            continue
        known = computed[-2:][::-1]
        references = outputs[known]
        missed = sum(effects[step] * (outputs[step] - np.array(line(known, step)) @ references) for step in steps)
        square = references @ references.T
        fitted = np.linalg.solve(square + RIDGE * np.diag(np.diag(square)), references @ missed)
        cost += float(np.square(missed - fitted @ references).sum())
    return cost


def line(known, step):
    return polynomial_weights([SIGMAS[each] for each in known], SIGMAS[step])


@pytest.mark.parametrize("seed", range(6))
def test_no_mask_is_better(seed):
    outputs = drawn(seed)
    effects = np.random.default_rng(seed + 100).uniform(0.05, 0.4, size=STEPS)
    masks = planner(outputs, effects)
    every = ["1" + "".join(rest) for rest in itertools.product("01", repeat=STEPS - 1)]
    for computed in range(1, STEPS + 1):
        rivals = {mask: cost_of(mask, outputs, effects) for mask in every if mask.count("1") == computed}
        found = masks.mask(computed)
        assert found in rivals
        assert masks.cost([step for step, mark in enumerate(found) if mark == "1"]) == pytest.approx(rivals[found])
        assert rivals[found] == pytest.approx(min(rivals.values()), rel=1e-9, abs=1e-12)


def test_what_hardly_shows_is_skipped_first():
    outputs, effects = drawn(1), np.full(STEPS, 0.2)
    effects[4] = 1e-9
    assert planner(outputs, effects).mask(STEPS - 1)[4] == "0"


def test_a_number_out_of_reach_is_the_nearest_there_is():
    masks = planner(drawn(2), np.full(STEPS, 0.2))
    assert masks.mask(99) == "1" * STEPS
    assert masks.mask(1) == "1" + "0" * (STEPS - 1)


def test_gaps_stay_short_and_where_they_cannot_the_mask_is_even():
    steps = 30
    sigmas = tuple(np.linspace(1, 0.03, steps))
    masks = planner(drawn(3, steps), np.full(steps, 1 / steps), sigmas)
    for computed in range(3, steps + 1):
        mask = masks.mask(computed)
        assert mask.count("1") == computed and mask[0] == "1"
        assert max(map(len, mask.split("1"))) <= LONGEST_GAP
    assert masks.mask(2) == "1" + "0" * 14 + "1" + "0" * 14
