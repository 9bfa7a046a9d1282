"""What a scheduler copy says of itself: how a changed output shows in the latents of a real run of the scheduler."""

from __future__ import annotations

from types import SimpleNamespace

import diffusers
import pytest
import torch

from fastcache_xdit.host.effects import SchedulerEffects, euler
from fastcache_xdit.host.listening import sigmas_of

STEPS, CHANGE = 7, 0.25
SCHEDULERS = {
    "flow match Euler": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    "DDIM": lambda: diffusers.DDIMScheduler(clip_sample=False),
    "DDIM, clips": lambda: diffusers.DDIMScheduler(clip_sample=True, clip_sample_range=1e6),
    "DDIM, v": lambda: diffusers.DDIMScheduler(prediction_type="v_prediction", clip_sample=False),
    "DPM++ 2M": lambda: diffusers.DPMSolverMultistepScheduler(),
    "DPM++ 2M, flow": lambda: diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    ),
    "UniPC": lambda: diffusers.UniPCMultistepScheduler(),
    "UniPC, flow": lambda: diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    ),
    "Euler": lambda: diffusers.EulerDiscreteScheduler(),
}


def levels_of(scheduler):
    """What reads the noise levels of a scheduler's requests."""
    return sigmas_of(SimpleNamespace(scheduler=scheduler, sigmas=None, begin=0))


def begun(name, steps=STEPS):
    scheduler = SCHEDULERS[name]()
    scheduler.set_timesteps(steps)
    return scheduler


def run(name, outputs):
    """The latents behind each step, [T, 1, 2, 4, 4]."""
    scheduler, found = begun(name, len(outputs)), []
    latents = torch.randn(1, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    for timestep, output in zip(scheduler.timesteps, outputs, strict=True):
        latents = scheduler.step(output, timestep, latents, return_dict=False)[0].double()
        found.append(latents)
    return torch.stack(found)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_effects_are_what_a_changed_output_changes(name):
    scheduler = begun(name)
    before = dict(vars(scheduler))
    effects = SchedulerEffects(scheduler, levels_of(scheduler))()
    assert vars(scheduler).keys() == before.keys()
    assert scheduler._step_index is None if hasattr(scheduler, "_step_index") else True, "the scheduler was not run"
    draw = torch.Generator().manual_seed(1)
    outputs = torch.randn(STEPS, 1, 2, 4, 4, dtype=torch.float64, generator=draw)
    plain, largest = run(name, outputs), max(map(abs, effects.final))
    for step in range(STEPS):
        changed = outputs.clone()
        changed[step] += CHANGE
        moved = (run(name, changed) - plain) / CHANGE
        assert moved[-1].mean().item() == pytest.approx(effects.final[step], abs=1e-5 * largest)
        assert moved[step].mean().item() == pytest.approx(effects.next[step], abs=1e-5 * largest)
        assert moved[-1].std() < 1e-5 * largest, "each value of the latents is treated alike"


def test_flow_matching_euler_takes_differences_of_noise_levels():
    scheduler = begun("flow match Euler")
    sigmas = levels_of(scheduler)()
    effects = SchedulerEffects(scheduler, levels_of(scheduler))()
    assert effects.final == pytest.approx(euler(sigmas).final, abs=1e-6) == effects.next


def test_one_that_cannot_say_is_taken_for_eulers():
    scheduler = diffusers.DDIMScheduler(clip_sample=True, clip_sample_range=1e-4)
    scheduler.set_timesteps(STEPS)
    sigmas = levels_of(scheduler)
    assert SchedulerEffects(scheduler, sigmas)() == euler(sigmas())


NOISY = {
    "LCM": diffusers.LCMScheduler,
    "Euler ancestral": diffusers.EulerAncestralDiscreteScheduler,
    "Euler ancestral, v": lambda: diffusers.EulerAncestralDiscreteScheduler(prediction_type="v_prediction"),
    "DDPM": lambda: diffusers.DDPMScheduler(clip_sample=False),
    "SDE-DPM++ 2M": lambda: diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"),
    "flow match, stochastic": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=True),
}


@pytest.mark.parametrize("name", NOISY)
def test_one_that_draws_noise_is_given_the_same_output_for_the_same_clean_picture(name):
    """Whatever noise it has drawn: the final latents of a clean picture told at every step are that picture."""
    scheduler = NOISY[name]()
    scheduler.set_timesteps(STEPS)
    if hasattr(scheduler, "scale_model_input"):
        scheduler.scale_model_input(torch.zeros(1), scheduler.timesteps[0])  # as pipelines do before the first call
    effects = SchedulerEffects(scheduler, levels_of(scheduler))
    measured = effects()
    draw, clean = torch.Generator().manual_seed(1), torch.full((1, 2, 4, 4), 0.5)
    timesteps, latents = (
        scheduler.timesteps,
        torch.randn(1, 2, 4, 4, generator=draw) * getattr(scheduler, "init_noise_sigma", 1),
    )
    assert len(effects.views) == STEPS
    for view, timestep in zip(effects.views, timesteps, strict=True):
        output = view.output_for(clean, latents, latents)
        assert torch.allclose(view.of(output, latents), clean, atol=1e-3) or not view.output
        latents = scheduler.step(output, timestep, latents, generator=draw, return_dict=False)[0]
    assert measured.final[-1] == max(measured.final) > 0.9, "the last one is the picture"
    assert latents.mean().item() == pytest.approx(0.5, abs=0.05)


def test_one_without_noise_is_stood_in_for_as_it_is():
    scheduler = begun("DPM++ 2M")
    effects = SchedulerEffects(scheduler, levels_of(scheduler))
    effects()
    assert effects.view(0) is None


def test_without_a_scheduler_it_is_eulers():
    assert SchedulerEffects(None, lambda: [1.0, 0.75, 0.25])().final == (-0.25, -0.5, -0.25)


def test_effects_are_measured_once_for_the_same_noise_levels_and_remembered():
    scheduler = begun("UniPC")
    effects = SchedulerEffects(scheduler, levels_of(scheduler))
    first = effects()
    assert effects() is first and effects.at(levels_of(scheduler)()) is first
    scheduler.set_timesteps(STEPS + 2)
    assert len(effects().final) == STEPS + 2


def test_a_request_that_begins_late_is_measured_from_there():
    """As image to image sets it."""
    scheduler = begun("flow match Euler")
    scheduler.set_begin_index(3)
    effects = SchedulerEffects(scheduler, levels_of(scheduler))()
    whole = SchedulerEffects(begun("flow match Euler"), levels_of(begun("flow match Euler")))()
    assert effects.final == pytest.approx(whole.final[3:], abs=1e-6)


@pytest.mark.parametrize("eta, draws", [(0.0, False), (0.5, True)])
def test_further_arguments_of_the_steps_say_whether_noise_is_drawn(eta, draws):
    scheduler, given = begun("DDIM"), {}
    effects = SchedulerEffects(scheduler, levels_of(scheduler), lambda: given)
    plain = effects()
    given["eta"] = eta
    assert (effects() != plain) == draws == bool(effects.views)
    given.clear()
    assert effects() == plain and not effects.views


@pytest.mark.parametrize("kind, amplifies", [("KDPM2Ancestral", True), ("EulerAncestral", False), ("KDPM2", False)])
def test_schedulers_that_make_more_of_an_error_are_told(kind, amplifies):
    scheduler = getattr(diffusers, f"{kind}DiscreteScheduler")()
    scheduler.set_timesteps(STEPS)
    effects = SchedulerEffects(scheduler, levels_of(scheduler))
    effects()
    assert effects.amplifies == amplifies
