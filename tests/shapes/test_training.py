"""What the models are trained on is what their pipelines ask of them, and training learns."""

import random

import pytest
import torch
from diffusers import DiffusionPipeline, FluxPipeline

from shapes import flux, training
from shapes.flow import tokenize
from shapes.loading import model_path
from shapes.recipes import RECIPES
from shapes.transformer_training import TrainingRun


@pytest.fixture
def untrained(tmp_path):
    """A recipe's pipeline and trained parts around random weights, none of them zero."""

    def build(name: str):
        torch.manual_seed(0)
        recipe = RECIPES[name]
        recipe.vae.build().save_pretrained(tmp_path / name)
        parts = recipe.parts(None).eval()
        for parameter in parts.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        return recipe.pipeline(parts, tmp_path / name), parts

    return build


def asked(pipeline: DiffusionPipeline, name: str, prompt: str) -> tuple[dict, torch.Tensor]:
    """Arguments and result of the pipeline's first call of its transformer."""
    calls = []
    pipeline.set_progress_bar_config(disable=True)
    pipeline.transformer.register_forward_hook(
        lambda module, args, kwargs, output: calls.append((kwargs, output[0])), with_kwargs=True
    )
    pipeline(prompt, output_type="latent", **{**RECIPES[name].defaults, "num_inference_steps": 2})
    return calls[0]


@torch.no_grad()
def test_flux_is_trained_as_its_pipeline_calls_it(untrained):
    pipeline, parts = untrained("shapes-flux")
    prompt = "a red circle on a dark background"
    arguments, answer = asked(pipeline, "shapes-flux", prompt)
    latents = FluxPipeline._unpack_latents(arguments["hidden_states"], 128, 128, 8)
    ids = [tokenize(tokenizer, [prompt])[0] for tokenizer in (pipeline.tokenizer, pipeline.tokenizer_2)]
    velocity = parts(*ids, latents, arguments["timestep"], arguments["guidance"])
    assert torch.allclose(velocity, FluxPipeline._unpack_latents(answer, 128, 128, 8), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_wan_is_trained_as_its_pipeline_calls_it(untrained):
    pipeline, parts = untrained("shapes-video")
    prompt = "a red circle moving left on a dark background"
    arguments, answer = asked(pipeline, "shapes-video", prompt)
    velocity = parts(*tokenize(pipeline.tokenizer, [prompt]), arguments["hidden_states"], arguments["timestep"] / 1000)
    assert torch.allclose(velocity, answer, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", RECIPES)
def test_streams_feed_what_the_parts_take(tmp_path, name):
    torch.manual_seed(0)
    recipe = RECIPES[name]
    recipe.vae.build().save_pretrained(tmp_path)
    batch = recipe.stream(tmp_path, random.Random(0)).next(2)
    with torch.no_grad():
        velocity = recipe.parts(None)(*batch.inputs)
    # Untrained transformers are the zero function.
    assert velocity.shape == batch.target.shape and velocity.abs().max() == 0 and batch.target.std() > 0.1
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


def learned(model: torch.nn.Module) -> None:
    """What an optimiser's step does to the parameters, as far as an average is concerned."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))


def test_the_average_forgets_faster_at_the_start():
    model = torch.nn.Linear(3, 2)
    expected = [parameter.detach().clone() for parameter in model.parameters()]
    average = training.moving_average(model)
    for step in range(2000):
        learned(model)
        average.update_parameters(model)
        decay = min(0.99, (1 + step) / (10 + step))
        torch._foreach_lerp_(expected, [parameter.detach() for parameter in model.parameters()], 1 - decay)
    assert all(map(torch.equal, average.module.parameters(), expected))


def test_a_checkpoint_goes_on_where_it_was_saved(tmp_path):
    def run() -> TrainingRun:
        return TrainingRun(RECIPES["shapes-pixart"].parts(None), random.Random(0))

    first, second = run(), run()
    for _ in range(3):
        learned(first.model)
        first.average.update_parameters(first.model)
        first.step += 1
    training.save_checkpoint(tmp_path / "saved.pt", first.state(spent=5.0))
    state = training.load_checkpoint(tmp_path / "saved.pt")
    assert all(type(value) is torch.Tensor for value in state["average"])
    second.restore(state)
    assert second.step == 3 and second.spent == 5.0
    for training_run in (first, second):
        torch.manual_seed(1)
        learned(training_run.model)
        training_run.average.update_parameters(training_run.model)
    assert all(map(torch.equal, first.average.parameters(), second.average.parameters()))
