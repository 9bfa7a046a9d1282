"""The shipped model: size, precision, tokenizer, autoencoder, and that it draws what prompts say."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import PixArtAlphaPipeline
from safetensors import safe_open

from fastcache_xdit.reference.checker import check, prompt_accuracy
from fastcache_xdit.reference.components import build_tokenizer
from fastcache_xdit.reference.evaluate import by_attribute, generate
from fastcache_xdit.reference.loading import SHIPPED, generation_defaults, model_path
from fastcache_xdit.reference.sampling import prompts, sample_any_scene
from fastcache_xdit.reference.shapes import caption, draw_batch

NAME = "shapes-pixart"
LIMIT_BYTES = 25_000_000


@pytest.fixture(scope="module")
def pipeline() -> PixArtAlphaPipeline:
    loaded = PixArtAlphaPipeline.from_pretrained(model_path(NAME))
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_unknown_models_are_refused_with_the_list_of_shipped_ones() -> None:
    for function in (model_path, generation_defaults):
        with pytest.raises(ValueError, match=", ".join(SHIPPED)):
            function("shapes-flux")


def test_folder_is_small_and_all_weights_are_half_precision() -> None:
    files = [path for path in model_path(NAME).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= LIMIT_BYTES
    weights = [path for path in files if path.suffix == ".safetensors"]
    assert {path.parent.name for path in weights} == {"vae", "text_encoder", "transformer"}
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".ckpt")]
    for path in weights:
        with safe_open(path, "pt") as stored:
            assert {stored.get_slice(key).get_dtype() for key in stored.keys()} == {"F16"}  # noqa: SIM118


def test_a_plain_load_gives_float32_parts(pipeline: PixArtAlphaPipeline) -> None:
    parts = (pipeline.vae, pipeline.text_encoder, pipeline.transformer)
    assert all(p.dtype == torch.float32 for part in parts for p in part.parameters())
    assert pipeline.tokenizer.model_max_length == generation_defaults(NAME)["max_sequence_length"]


def test_tokenizer_knows_every_caption_word_and_round_trips(pipeline: PixArtAlphaPipeline, tmp_path: Path) -> None:
    rng = random.Random(4)
    texts = [caption(sample_any_scene(rng)) for _ in range(200)]
    build_tokenizer().save_pretrained(tmp_path)
    again = type(pipeline.tokenizer).from_pretrained(tmp_path)
    for text in texts:
        ids = pipeline.tokenizer(text).input_ids
        assert len(ids) == len(text.split()) + 1 and pipeline.tokenizer.unk_token_id not in ids
        assert pipeline.tokenizer.decode(ids, skip_special_tokens=True) == text
        assert again(text).input_ids == ids == build_tokenizer()(text).input_ids


def test_unknown_words_are_spelled_out(pipeline: PixArtAlphaPipeline) -> None:
    pieces = pipeline.tokenizer.convert_ids_to_tokens(pipeline.tokenizer("a mauve").input_ids)
    assert pieces == ["▁a", "▁", "m", "a", "u", "v", "e", "</s>"]


@torch.no_grad()
def test_autoencoder_keeps_what_prompts_say(pipeline: PixArtAlphaPipeline) -> None:
    rng = random.Random(5)
    scenes = [sample_any_scene(rng) for _ in range(24)]
    images = draw_batch(scenes)
    latents = pipeline.vae.encode(images).latent_dist.mode()
    decoded = pipeline.vae.decode(latents).sample.clamp(-1, 1)
    assert latents.shape == (24, 4, 16, 16)
    assert 0.9 < (latents * pipeline.vae.config.scaling_factor).std().item() < 1.1
    assert 10 * torch.log10(4 / (decoded - images).pow(2).mean()).item() >= 30
    pixels = list(((decoded + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
    assert prompt_accuracy(pixels, [caption(scene) for scene in scenes]) >= 0.95


def test_scheduler_steps_along_the_flow_it_was_trained_for(pipeline: PixArtAlphaPipeline) -> None:
    scheduler = pipeline.scheduler
    scheduler.set_timesteps(20)
    assert torch.all((scheduler.timesteps / 1000 - scheduler.sigmas[:-1]).abs() <= 1e-3)
    clean, noise = torch.randn(2, 1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    sample = (1 - scheduler.sigmas[0]) * clean + scheduler.sigmas[0] * noise
    for step in scheduler.timesteps:
        sample = scheduler.step(noise - clean, step, sample).prev_sample
    assert torch.allclose(sample, clean, atol=1e-3)


def test_generated_images_show_what_prompts_say() -> None:
    captions = prompts(8, 0)
    images = generate(model_path(NAME), captions)
    scores = [check(image, text) for image, text in zip(images, captions, strict=True)]
    assert by_attribute(scores)["all"] >= 0.7


def test_the_same_seed_draws_the_same_image() -> None:
    first, again, other = (
        generate(model_path(NAME), prompts(1, 0), seed, num_inference_steps=3)[0] for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again) and not np.array_equal(first, other)
