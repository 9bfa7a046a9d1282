"""Requests of other kinds than those learnt from: image to image, and schedulers that say little of themselves."""

from __future__ import annotations

import diffusers
import pytest
import torch

from fastcache_xdit import fastcache
from fastcache_xdit.approx.pooled import pooled
from tests import tiny
from tests.models.unknown import UNKNOWN

STEPS = 10


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTCACHE_HOME", str(tmp_path))


def _image(size: int) -> torch.Tensor:
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))


def _diffusion(scheduler):
    """Image to image of a U-Net, with a scheduler that cannot be told where a request begins."""
    torch.manual_seed(0)
    pipe, call = UNKNOWN["U-Net"]()
    parts = {name: part for name, part in pipe.components.items() if name != "scheduler"}
    made = diffusers.StableDiffusionImg2ImgPipeline(**parts, scheduler=scheduler, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return made, {name: value for name, value in call.items() if name not in ("height", "width")}


def _serve(pipe, call, **changes):
    generator = torch.Generator().manual_seed(1)
    return pipe(**{**call, "num_inference_steps": STEPS, "output_type": "latent", **changes}, generator=generator)[0]


SCHEDULERS = {
    "DDIM": lambda: diffusers.DDIMScheduler(clip_sample=False, steps_offset=1),
    "PNDM": lambda: diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1),
    "DPM++": lambda: diffusers.DPMSolverMultistepScheduler(),
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("strength", [0.3, 0.8])
def test_the_budget_is_one_of_the_steps_that_are_taken(name, strength):
    pipe, call = _diffusion(SCHEDULERS[name]())
    call |= {"image": _image(32), "strength": strength}
    whole = _serve(pipe, call)
    with fastcache(pipe, budget=1, learn=0):
        assert torch.equal(_serve(pipe, call), whole)
    with fastcache(pipe, budget=0.5, learn=2) as handle:
        for _ in range(2):
            assert torch.equal(_serve(pipe, call), whole)
        _serve(pipe, call)
        steps = {entry.step: entry.skip for entry in handle.report().ledger}
    assert len(handle.learnt.sigmas) == len(steps) and sum(steps.values()) >= len(steps) / 2 - 0.5


@pytest.mark.parametrize("steps", [8, 12])
def test_a_noise_level_that_comes_twice_is_no_hindrance_to_other_steps(steps):
    torch.manual_seed(0)
    pipe, call = UNKNOWN["U-Net"]()
    pipe.scheduler = SCHEDULERS["PNDM"]()
    pipe.set_progress_bar_config(disable=True)
    with fastcache(pipe, learn=1) as handle:
        _serve(pipe, call)
        assert len(set(handle.learnt.sigmas)) < len(handle.learnt.sigmas)
        assert _serve(pipe, call, num_inference_steps=steps).isfinite().all()


def test_what_was_learnt_from_much_noise_is_not_used_for_little(caplog):
    pipe = diffusers.StableDiffusion3Img2ImgPipeline(**tiny.pipeline("sd3").components)
    pipe.set_progress_bar_config(disable=True)
    texts = tiny.call_arguments("sd3", pixels=64)
    call = {name: value for name, value in texts.items() if name not in ("latents", "output_type", "height", "width")}
    call |= {"image": _image(64)}
    with fastcache(pipe, budget=0.5, learn=2) as handle:
        for _ in range(2):
            _serve(pipe, call, strength=1.0)
        _serve(pipe, call, strength=1.0)
        assert "far from that" not in caplog.text and handle.learnt
        planned = _serve(pipe, call, strength=0.6)
        assert "such requests are planned from other models" in caplog.text
    with fastcache(pipe, budget=0.5, learn=0, home=None, calibration=pooled()):
        assert torch.equal(_serve(pipe, call, strength=0.6), planned)


def test_a_compiled_transformer_in_a_pipeline_is_taken_and_given_back():
    pipe = tiny.pipeline("sd3")
    texts = {name: value for name, value in tiny.call_arguments("sd3", pixels=64).items() if name != "output_type"}
    whole = _serve(pipe, texts)
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    before = set(vars(pipe.transformer))
    with fastcache(pipe, budget=0.5, learn=0) as handle:
        _serve(pipe, texts)
        assert handle.report().counters.approximated.total() == STEPS // 2
    assert set(vars(pipe.transformer)) == before
    assert torch.allclose(_serve(pipe, texts), whole, atol=1e-5)
