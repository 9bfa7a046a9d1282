"""What the models are trained on is what their pipelines ask of them, and training learns."""

import random

import pytest
import torch
from diffusers import DiffusionPipeline, FluxPipeline

from fastcache_xdit.reference import flux, wan
from fastcache_xdit.reference.flow import tokenize
from fastcache_xdit.reference.loading import model_path
from fastcache_xdit.reference.recipes import RECIPES


def asked(name: str, prompt: str, **call) -> tuple[dict, torch.Tensor]:
    """Arguments and result of the first call of a shipped pipeline's transformer."""
    pipeline, calls = DiffusionPipeline.from_pretrained(model_path(name)), []
    pipeline.set_progress_bar_config(disable=True)
    pipeline.transformer.register_forward_hook(
        lambda module, args, kwargs, output: calls.append((kwargs, output[0])), with_kwargs=True
    )
    pipeline(prompt, output_type="latent", **{**RECIPES[name].defaults, "num_inference_steps": 2, **call})
    return calls[0]


@torch.no_grad()
def test_flux_is_trained_as_its_pipeline_calls_it():
    prompt = "a red circle on a dark background"
    arguments, answer = asked("shapes-flux", prompt, guidance_scale=3.0)
    latents = FluxPipeline._unpack_latents(arguments["hidden_states"], 128, 128, 8)
    stream = flux.GuidedStream(model_path("shapes-flux") / "vae", random.Random(0))
    ids = [tokenize(tokenizer, [prompt])[0] for tokenizer in (stream.clip, stream.t5)]
    model = flux.parts(model_path("shapes-flux")).eval()
    velocity = model(*ids, latents, arguments["timestep"], torch.tensor([3.0]))
    assert torch.allclose(velocity, FluxPipeline._unpack_latents(answer, 128, 128, 8), atol=1e-5)


@torch.no_grad()
def test_wan_is_trained_as_its_pipeline_calls_it():
    prompt = "a red circle moving left on a dark background"
    arguments, answer = asked("shapes-video", prompt)
    model = wan.parts(model_path("shapes-video")).eval()
    ids = tokenize(wan.tokenizer(), [prompt])
    velocity = model(*ids, arguments["hidden_states"], arguments["timestep"] / 1000)
    assert torch.allclose(velocity, answer, atol=1e-5)


@pytest.mark.parametrize("name", RECIPES)
def test_streams_feed_what_the_parts_take(name):
    torch.manual_seed(0)
    recipe = RECIPES[name]
    batch = recipe.stream(model_path(name) / "vae", random.Random(0)).next(2)
    with torch.no_grad():
        velocity = recipe.parts(None)(*batch.inputs)
    # Untrained transformers are the zero function.
    assert velocity.shape == batch.target.shape and velocity.abs().max() == 0 and batch.target.std() > 0.5
    assert all(tensor.isfinite().all() for tensor in batch.inputs)


def test_answers_of_the_teacher_serve_twice(monkeypatch):
    monkeypatch.setattr(flux, "_KEPT", 4)
    stream, asked_for = flux.GuidedStream(model_path("shapes-flux") / "vae", random.Random(0)), []

    def ask(count: int) -> list[flux.Answer]:
        asked_for.append(count)
        ids, sigma, image = torch.zeros(16, dtype=torch.int64), torch.zeros(4), torch.zeros(4, 4, 16, 16)
        return [flux.Answer(ids, ids, image, sigma, image, image)] * count

    monkeypatch.setattr(stream, "_ask", ask)
    assert all(len(stream.next(4).inputs[0]) == 4 for _ in range(5))
    assert asked_for == [4, 2, 2, 2, 2] and len(stream.kept) == 4
