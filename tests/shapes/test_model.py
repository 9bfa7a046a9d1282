"""The shipped models: size, precision, tokenizers, autoencoders, and that they draw what prompts say."""

import random

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors import safe_open

from shapes import pixart, wan
from shapes.clip import build_clip_tokenizer
from shapes.components import build_tokenizer
from shapes.evaluate import by_attribute, generate
from shapes.flow import CAPTION_TOKENS
from shapes.loading import SHIPPED, calibration_path, generation_defaults, model_path, tuned_configs
from shapes.recipes import RECIPES
from shapes.sampling import sample_any_scene
from shapes.shapes import caption, draw_batch

LIMIT_BYTES = 25_000_000
# Model, its tokenizer, what builds the same one for training, and the tokens that it adds to the words.
TOKENIZERS = [
    ("shapes-pixart", "tokenizer", pixart.tokenizer, 1),
    ("shapes-flux", "tokenizer", lambda: build_clip_tokenizer(CAPTION_TOKENS), 2),
    ("shapes-flux", "tokenizer_2", lambda: build_tokenizer(CAPTION_TOKENS), 1),
    ("shapes-video", "tokenizer", wan.tokenizer, 1),
]


@pytest.fixture(scope="module")
def pipelines():
    """All shipped pipelines by name, loaded as a user would."""
    loaded = {name: DiffusionPipeline.from_pretrained(model_path(name)) for name in SHIPPED}
    for pipeline in loaded.values():
        pipeline.set_progress_bar_config(disable=True)
    return loaded


def to_pixels(drawn: torch.Tensor) -> list[np.ndarray]:
    """uint8 images (H, W, 3) or videos (F, H, W, 3) of a batch in [-1, 1] with channels second."""
    return list(((drawn + 1) * 127.5).round().byte().movedim(1, -1).numpy())


def test_every_shipped_model_has_a_recipe():
    assert set(SHIPPED) <= set(RECIPES)


def test_unknown_models_are_refused_with_the_list_of_shipped_ones():
    for function in (model_path, generation_defaults):
        with pytest.raises(ValueError, match=", ".join(SHIPPED)):
            function("shapes-audio")


def test_a_model_without_calibration_says_how_to_make_one(monkeypatch, tmp_path):
    monkeypatch.setattr("shapes.loading._PRESETS", tmp_path)
    with pytest.raises(ValueError, match="no calibration of shapes-pixart .* calibrate --model shapes-pixart"):
        calibration_path("shapes-pixart")
    assert tuned_configs("shapes-pixart") == {}


@pytest.mark.parametrize("name", SHIPPED)
def test_folder_is_small_and_all_weights_are_half_precision(name):
    files = [path for path in model_path(name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= LIMIT_BYTES
    weights = [path for path in files if path.suffix == ".safetensors"]
    assert {path.parent.name for path in weights} >= {"vae", "text_encoder", "transformer"}
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".ckpt")]
    for path in weights:
        with safe_open(path, "pt") as stored:
            assert {stored.get_slice(key).get_dtype() for key in stored.keys()} == {"F16"}  # noqa: SIM118


@pytest.mark.parametrize("name", SHIPPED)
def test_a_plain_load_gives_float32_parts(pipelines, name):
    parts = [part for part in pipelines[name].components.values() if isinstance(part, torch.nn.Module)]
    assert len(parts) >= 3 and all(p.dtype == torch.float32 for part in parts for p in part.parameters())
    assert generation_defaults(name) == RECIPES[name].defaults


@pytest.mark.parametrize(("name", "part", "build", "added"), TOKENIZERS)
def test_tokenizers_know_every_caption_word_and_round_trip(pipelines, tmp_path, name, part, build, added):
    tokenizer = pipelines[name].components[part]
    assert tokenizer.model_max_length == generation_defaults(name)["max_sequence_length"]
    build().save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    rng = random.Random(4)
    for text in [caption(sample_any_scene(rng)) for _ in range(200)]:
        ids = tokenizer(text).input_ids
        assert len(ids) == len(text.split()) + added <= CAPTION_TOKENS
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert again(text).input_ids == ids == build()(text).input_ids


def test_unknown_words_are_spelled_out(pipelines):
    tokenizer = pipelines["shapes-pixart"].tokenizer
    pieces = tokenizer.convert_ids_to_tokens(tokenizer("a mauve").input_ids)
    assert pieces == ["▁a", "▁", "m", "a", "u", "v", "e", "</s>"]
    clip = pipelines["shapes-flux"].tokenizer
    assert clip.decode(clip("a mauve").input_ids, skip_special_tokens=True) == "a mauve"


def accuracy(name: str, drawn: torch.Tensor, wanted: list[str]) -> float:
    """Prompt accuracy of a batch of images or videos in [-1, 1]."""
    pixels = to_pixels(drawn.clamp(-1, 1))
    return by_attribute([RECIPES[name].check(*each) for each in zip(pixels, wanted, strict=True)])["all"]


@torch.no_grad()
def test_autoencoder_keeps_what_prompts_say(pipelines):
    rng, vae = random.Random(5), pipelines["shapes-pixart"].vae
    scenes = [sample_any_scene(rng) for _ in range(24)]
    images = draw_batch(scenes)
    latents = vae.encode(images).latent_dist.mode()
    decoded = vae.decode(latents).sample
    assert latents.shape == (24, 4, 16, 16)
    assert 0.9 < (latents * vae.config.scaling_factor).std().item() < 1.1
    assert 10 * torch.log10(4 / (decoded - images).pow(2).mean()).item() >= 30
    assert accuracy("shapes-pixart", decoded, [caption(scene) for scene in scenes]) >= 0.95


def test_flux_draws_with_the_autoencoder_of_its_teacher(pipelines):
    teacher, own = (pipelines[name].vae for name in ("shapes-pixart", "shapes-flux"))
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), own.parameters(), strict=True))
    assert own.config.scaling_factor == teacher.config.scaling_factor and own.config.shift_factor == 0


@pytest.mark.parametrize("name", SHIPPED)
def test_schedulers_step_along_the_flow_that_was_trained(pipelines, name):
    scheduler = pipelines[name].scheduler
    scheduler.set_timesteps(20)
    assert torch.all((scheduler.timesteps / 1000 - scheduler.sigmas[:-1]).abs() <= 1e-3)
    clean, noise = torch.randn(2, 1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    sample = (1 - scheduler.sigmas[0]) * clean + scheduler.sigmas[0] * noise
    for step in scheduler.timesteps:
        sample = scheduler.step(noise - clean, step, sample).prev_sample
    assert torch.allclose(sample, clean, atol=2e-3)


@pytest.mark.parametrize("name", SHIPPED)
def test_generated_images_show_what_prompts_say(name):
    wanted = RECIPES[name].prompts(8, 0)
    drawn = generate(model_path(name), wanted)
    scores = [RECIPES[name].check(image, text) for image, text in zip(drawn, wanted, strict=True)]
    assert by_attribute(scores)["all"] >= 0.7


@pytest.mark.parametrize("name", SHIPPED)
def test_the_same_seed_draws_the_same_image(name):
    prompt = RECIPES[name].prompts(1, 0)
    first, again, other = (generate(model_path(name), prompt, seed, num_inference_steps=3)[0] for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
