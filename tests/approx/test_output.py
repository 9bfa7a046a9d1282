"""Weights of past outputs against least squares by hand, with carried errors, and where refits take their place."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastcache_xdit.approx import output
from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.approx.moments import Halves, Moments
from fastcache_xdit.approx.output import (
    OUTPUTS,
    SEGMENT,
    STREAM,
    WITH_LATENTS,
    OutputForecast,
    Weights,
    combined,
    key_of,
)
from fastcache_xdit.approx.output_plan import planned

SIGMAS = (1.0, 0.8, 0.6, 0.4, 0.2)
EFFECTS = (-0.3, -0.3, -0.25, -0.2, -0.1)
ROWS, CHANNELS = 4000, 2


def outputs(seed=0):
    """[T, n, C]: a straight line over the noise level and a bend, both random, and some noise of each step."""
    draw = torch.Generator().manual_seed(seed)
    level, slope, bend = (torch.randn(ROWS, CHANNELS, generator=draw, dtype=torch.float64) for _ in range(3))
    smooth = [level + sigma * slope + sigma**2 * bend for sigma in SIGMAS]
    return torch.stack([one + 0.1 * torch.randn(one.shape, generator=draw, dtype=torch.float64) for one in smooth])


def forecast(states, refits=None, effects=EFFECTS, latents=None, doubt=0.0):
    moments = Moments.empty(SIGMAS, CHANNELS)
    moments.add(list(states), list(torch.zeros_like(states) if latents is None else latents))
    return OutputForecast(Halves(moments, moments), effects, refits or {}, doubt)


def weights_of(plan):
    """Weights of outputs alone, as a function of step and computed steps."""
    return lambda *place: plan.weights(*place, sees_latents=False).outputs


def least_squares(states, target, known):
    """[C, K]: for each channel the weights of known outputs that come nearest to a target [n, C]."""
    return torch.stack(
        [
            torch.linalg.lstsq(states[list(known), :, channel].T, target[:, channel, None]).solution[:, 0]
            for channel in range(CHANNELS)
        ]
    )


@pytest.mark.parametrize("known", [(0,), (1, 0), (2, 1, 0), (3, 2, 1, 0)])
def test_after_a_computed_step_the_weights_are_those_of_least_squares(known):
    states, step = outputs(), known[0] + 1
    found = weights_of(forecast(states))(step, known)
    by_hand = least_squares(states, states[step], known[:3])
    torch.testing.assert_close(found.double(), by_hand, atol=0.01, rtol=0.01)
    assert found.dtype == torch.float32


def test_at_noise_levels_that_were_not_learnt_a_fifth_is_made_good():
    moments = Moments.empty(SIGMAS, CHANNELS)
    moments.add(list(outputs()), list(torch.zeros_like(outputs())))
    learnt = Calibration({}, {}, SIGMAS, {SEGMENT: {STREAM: Halves(moments, moments)}})
    elsewhere = (*SIGMAS[:-1], SIGMAS[-1] * 0.99)
    assert planned(learnt, SIGMAS, EFFECTS).forecast.made_good == 1
    there = planned(learnt, elsewhere, EFFECTS).forecast
    whole, none = (replace(there, made_good=part) for part in (1.0, 0.0))
    fifth, all_of_it, nothing = (weights_of(plan)(3, (1, 0)) for plan in (there, whole, none))
    assert not torch.equal(all_of_it, nothing)
    torch.testing.assert_close(fifth, nothing + 0.2 * (all_of_it - nothing), atol=5e-3, rtol=5e-3)


def test_a_skipped_step_tries_to_make_good_what_the_one_before_missed():
    states = outputs()
    weights = weights_of(forecast(states))
    first = weights(2, (1, 0)).double()
    torch.testing.assert_close(first, least_squares(states, states[2], (1, 0)), atol=2e-3, rtol=2e-3)
    missed = states[2] - sum(first[:, k] * states[step] for k, step in enumerate((1, 0)))
    wanted = states[3] + EFFECTS[2] / EFFECTS[3] * missed
    second = weights(3, (1, 0)).double()
    torch.testing.assert_close(second, least_squares(states, wanted, (1, 0)), atol=2e-3, rtol=2e-3)
    # what least squares miss cannot be made good by the same two outputs, but with a third one it can: see below
    torch.testing.assert_close(second, least_squares(states, states[3], (1, 0)), atol=2e-3, rtol=2e-3)


def test_errors_are_carried_over_computed_steps():
    states = outputs()
    weights = weights_of(forecast(states))
    first = weights(2, (1, 0)).double()
    missed = states[2] - sum(first[:, k] * states[step] for k, step in enumerate((1, 0)))
    wanted = states[4] + EFFECTS[2] / EFFECTS[4] * missed
    found = weights(4, (3, 1, 0)).double()
    torch.testing.assert_close(found, least_squares(states, wanted, (3, 1, 0)), atol=0.01, rtol=0.01)
    assert (found - least_squares(states, states[4], (3, 1, 0))).abs().max() > 0.1, "it matters"


def test_a_step_without_an_effect_carries_nothing():
    states = outputs()
    found = weights_of(forecast(states, effects=(*EFFECTS[:3], 0.0, EFFECTS[4])))(3, (1, 0))
    torch.testing.assert_close(found.double(), least_squares(states, states[3], (1, 0)), atol=2e-3, rtol=2e-3)


def test_what_cannot_be_learnt_is_the_straight_line():
    """Noise alone in few rows: weights fitted on one half mislead the other one, and the prior is kept."""
    draw = torch.Generator().manual_seed(3)
    halves = []
    for _ in range(2):
        moments = Moments.empty(SIGMAS, 1)
        states = [torch.randn(3, 1, generator=draw) for _ in SIGMAS]
        states[2] = 2 * states[1] - states[0] + 1e-3 * states[2]
        moments.add(states, [torch.zeros(3, 1)] * len(SIGMAS))
        halves.append(moments)
    found = weights_of(OutputForecast(Halves(*halves), EFFECTS))(2, (1, 0))
    torch.testing.assert_close(found, torch.tensor([[2.0, -1.0]]), atol=0.02, rtol=0)


def test_refits_win_where_their_references_are_used():
    states, refit = outputs(), torch.tensor([[0.5, 0.25], [0.75, 0.125]])
    refits = {key_of(SIGMAS, 3, (2, 0), OUTPUTS): refit}
    found, plain = weights_of(forecast(states, refits)), weights_of(forecast(states))
    assert torch.equal(found(3, (2, 0)), refit)
    assert torch.equal(found(3, (2, 1, 0)), plain(3, (2, 1, 0))), "a mask that computed more"
    assert torch.equal(found(4, (2, 0)), plain(4, (2, 0)))


def test_doubt_is_worth_as_much_as_errors_of_the_outputs_themselves():
    """Each known output with random errors whose variance is doubt * distance^4 * energy, against moments without."""
    draw, doubt, known, step = torch.Generator().manual_seed(2), 5.0, (2, 1, 0), 4
    states = outputs()
    scattered = states.clone()
    for other in known:
        size = doubt**0.5 * (SIGMAS[other] - SIGMAS[step]) ** 2 * states[other].square().mean(dim=0).sqrt()
        scattered[other] += size * torch.randn(states[other].shape, generator=draw, dtype=torch.float64)
    effects = (*EFFECTS[:4], 0.0)  # nothing is carried
    found = weights_of(forecast(states, effects=effects, doubt=doubt))(step, known).double()
    torch.testing.assert_close(found, least_squares(scattered, states[step], known), atol=0.03, rtol=0.03)
    assert found.norm() < 0.7 * weights_of(forecast(states, effects=effects))(step, known).norm()


def test_latents_are_weighed_where_they_were_recorded_and_are_shown():
    draw = torch.Generator().manual_seed(1)
    states, latents = outputs(), torch.randn(len(SIGMAS), ROWS, CHANNELS, generator=draw, dtype=torch.float64)
    states[2] += 0.5 * latents[2]
    plan = forecast(states, latents=latents)
    found = plan.weights(2, (1, 0), sees_latents=True)
    by_hand = least_squares(torch.cat([states, latents[2:3]]), states[2], (1, 0, len(SIGMAS)))
    torch.testing.assert_close(torch.cat(found, dim=1).double(), by_hand, atol=2e-3, rtol=2e-3)
    assert (found.latents - 0.5).abs().max() < 0.02
    hidden = plan.weights(2, (1, 0), sees_latents=False)
    assert hidden.latents is None
    torch.testing.assert_close(hidden.outputs.double(), least_squares(states, states[2], (1, 0)), atol=2e-3, rtol=2e-3)


def test_refits_with_latents_are_for_where_they_are_shown():
    states, refit = outputs(), torch.tensor([[0.5, 0.25, 2.0], [0.75, 0.125, 3.0]])
    refits = {key_of(SIGMAS, 3, (2, 0), WITH_LATENTS): refit}
    plan = forecast(states, refits, latents=torch.ones_like(states))
    assert torch.equal(torch.cat(plan.weights(3, (2, 0), sees_latents=True), dim=1), refit)
    assert plan.weights(3, (2, 0), sees_latents=False).outputs.shape == (CHANNELS, 2)


def test_no_more_references_are_used_than_are_kept():
    states = outputs()
    assert weights_of(forecast(states))(4, (3, 2, 1, 0)).shape == (CHANNELS, 3)
    refits = {key_of(SIGMAS, 4, (3, 2, 1), OUTPUTS): torch.ones(CHANNELS, 3)}
    assert torch.equal(weights_of(forecast(states, refits))(4, (3, 2, 1, 0)), torch.ones(CHANNELS, 3))


@pytest.mark.parametrize("shape", [(2, 5, 3), (2, 3, 4, 4), (2, 3, 2, 4, 4)])
@pytest.mark.parametrize("channels", [1, 3])
def test_outputs_are_weighed_by_channel(shape, channels):
    """Channels are the last of three dimensions, else the second."""
    draw = torch.Generator().manual_seed(0)
    weights = torch.randn(channels, 2, generator=draw)
    first, second = (torch.randn(shape, generator=draw) for _ in range(2))
    axis = 2 if len(shape) == 3 else 1
    by_hand = [
        weights[channel % channels, 0] * first.select(axis, channel)
        + weights[channel % channels, 1] * second.select(axis, channel)
        for channel in range(3)
    ]
    torch.testing.assert_close(combined(Weights(weights), [first, second]), torch.stack(by_hand, dim=axis))


def test_latents_are_added_by_channel():
    weights = Weights(torch.tensor([[2.0], [3.0]]), torch.tensor([[10.0], [20.0]]))
    output, latents = torch.ones(1, 4, 2), torch.ones(1, 4, 2)
    assert combined(weights, [output, 7 * output], latents)[0, 0].tolist() == [12.0, 23.0]


def test_low_precision_is_summed_in_float32():
    outputs_16 = [torch.tensor([[[256.0]]], dtype=torch.bfloat16), torch.tensor([[[255.0]]], dtype=torch.bfloat16)]
    found = combined(Weights(torch.tensor([[1.01, -1.0]])), outputs_16)
    assert found.dtype == torch.bfloat16 and found.item() == pytest.approx(3.56, rel=1e-2)


def test_weights_that_are_forgotten_are_solved_again(monkeypatch):
    states = outputs()
    wanted = weights_of(forecast(states))(4, (1, 0))
    monkeypatch.setattr(output, "MOST_SOLVED", 1)
    assert torch.equal(weights_of(forecast(states))(4, (1, 0)), wanted)
