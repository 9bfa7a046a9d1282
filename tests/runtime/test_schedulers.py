"""Plans with schedulers that draw noise, or evaluate noise levels twice."""

from __future__ import annotations

import diffusers
import pytest
import torch

from fastcache_xdit import fastcache
from fastcache_xdit.runtime.remarks import AMPLIFIED
from fastcache_xdit.shipped import generation_defaults, held_out_prompts, model_path
from tests import tiny

STEPS = 10
TWICE = {"Heun": diffusers.HeunDiscreteScheduler, "KDPM2": diffusers.KDPM2DiscreteScheduler}


def error_of_half(pipe, arguments) -> float:
    """Relative error of the final latents with half of the steps; with all of them they must be the same."""

    def latents():
        torch.manual_seed(3)  # some pipelines do not hand their generator to the scheduler
        return pipe(**arguments, generator=torch.Generator().manual_seed(3), output_type="latent").images

    whole = latents()
    with fastcache(pipe, budget=1.0, learn=0):
        assert torch.equal(latents(), whole), "nothing is skipped, and nothing is changed"
    with fastcache(pipe, budget=0.5, learn=0) as handle:
        half = latents()
    assert 2 * sum(entry.skip for entry in handle.report().ledger) >= len(pipe.scheduler.timesteps)
    return ((half - whole).norm() / whole.norm()).item()


@pytest.mark.parametrize("name", TWICE)
def test_two_evaluations_of_a_step_are_not_taken_for_two_steps(name):
    pipe = tiny.pipeline("pixart")
    pipe.scheduler = TWICE[name](prediction_type="v_prediction")
    arguments = {name: value for name, value in tiny.call_arguments("pixart").items() if name != "output_type"}
    assert error_of_half(pipe, {**arguments, "num_inference_steps": STEPS}) < 0.02


def test_where_a_scheduler_draws_noise_the_clean_picture_is_extrapolated():
    """What the model says of noise that was drawn this very step, no earlier output tells: 71 % with outputs alone."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(str(model_path("shapes-flux")))
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.FlowMatchLCMScheduler(shift=pipe.scheduler.config.shift)
    arguments = generation_defaults("shapes-flux") | {"prompt": held_out_prompts("shapes-flux", 2, 5)}
    assert error_of_half(pipe, {**arguments, "num_inference_steps": STEPS}) < 0.35


def test_a_scheduler_that_amplifies_errors_is_computed_in_full_and_that_is_said():
    """Behind its second evaluations KDPM2 ancestral makes 14 times of an error, which the model takes for picture."""
    pipe = tiny.pipeline("pixart")
    pipe.scheduler = diffusers.KDPM2AncestralDiscreteScheduler(prediction_type="v_prediction")
    with fastcache(pipe, budget=0.5, learn=0) as handle:
        pipe(**tiny.call_arguments("pixart"), num_inference_steps=STEPS)
    assert not any(entry.skip for entry in handle.report().ledger)
    assert handle.report().remarks == (AMPLIFIED,)


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_noise_that_a_call_asks_of_ddim_is_planned_for_as_soon_as_it_shows(eta):
    """`eta` comes with the first step; outputs alone miss 3 to 4 times of the latents with an eta of 1."""
    pipe = tiny.pipeline("pixart")
    pipe.scheduler = diffusers.DDIMScheduler(prediction_type="v_prediction", clip_sample=False)
    with fastcache(pipe, budget=0.5, learn=0) as handle:
        for given in (eta, 0.0, eta):
            pipe(**tiny.call_arguments("pixart"), num_inference_steps=STEPS, eta=given)
            assert handle.report().ledger[-1].skip == (given == 0), "the last clean picture is the one that counts"
