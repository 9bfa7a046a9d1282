"""Solving keeps the moments of one schedule at a time, and a bounded number of solutions; what is kept is counted."""

from __future__ import annotations

import torch

from fastcache_xdit.approx import fitted
from fastcache_xdit.approx.fitted import Fitted, SolutionCache
from fastcache_xdit.approx.moments import Halves, Moments

CHANNELS, STEPS = 4, 8


def moments() -> Moments:
    sigmas = [1 - step / STEPS for step in range(STEPS)]
    made, draw = Moments.empty(sigmas, CHANNELS), torch.Generator().manual_seed(0)
    states = torch.randn(2 * STEPS, 64, CHANNELS, generator=draw)
    made.add(list(states[:STEPS]), list(states[STEPS:]))
    return made


def solved(stand_in: Fitted, steps: int) -> torch.Tensor:
    stand_in.begin([1 - step / steps for step in range(steps)])
    return stand_in.coefficients("hidden_states", 2, (1, 0))


def test_many_schedules_take_no_more_than_one(monkeypatch):
    cache, halves = SolutionCache(), Halves(moments(), moments())
    stand_in = Fitted("history", {"hidden_states": halves}, cache)
    first, held = solved(stand_in, 4), []
    for steps in range(5, 25):
        solved(stand_in, steps)
        held.append(stand_in.bytes_held())
    assert len(cache.by_stream) == 1 and len(cache.coefficients) == 21
    largest = 2 * CHANNELS * (2 * 24 + 1) ** 2 * 8
    assert held[-1] <= largest + 21 * first.numel() * first.element_size() + CHANNELS * 49 * 8
    assert solved(stand_in, 4) is first, "what was solved stays"
    stand_in.release()
    assert stand_in.bytes_held() == 21 * first.numel() * first.element_size()


def test_the_calibrations_own_moments_are_not_counted():
    stand_in = Fitted("history", {"hidden_states": Halves(moments(), moments())}, SolutionCache())
    coefficients = solved(stand_in, STEPS)
    assert stand_in.bytes_held() == coefficients.numel() * coefficients.element_size()


def test_ever_new_masks_are_bounded_and_solved_again_to_the_same(monkeypatch):
    monkeypatch.setattr(fitted, "MOST_SOLVED", 3)
    cache = SolutionCache()
    stand_in = Fitted("history", {"hidden_states": Halves(moments(), moments())}, cache)
    first = solved(stand_in, 4)
    for steps in range(5, 12):
        solved(stand_in, steps)
        assert len(cache.coefficients) <= 3
    assert torch.equal(solved(stand_in, 4), first)
