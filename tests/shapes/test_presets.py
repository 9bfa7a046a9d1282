"""Shipped presets keep within their budgets, belong to the shipped weights, and beat what nobody fitted."""

from __future__ import annotations

import pytest
import torch
from diffusers import PixArtAlphaPipeline

from fastcache_xdit import FastCacheConfig, fastcache
from fastcache_xdit.decision.schedule import uniform_mask
from shapes.loading import PRESETS, generation_defaults, model_path, tuned_configs
from shapes.sampling import prompts
from tests.parallel.cached import psnr

CONFIGS = {name: tuned_configs("shapes-pixart")[budget] for name, budget in PRESETS.items()}


@pytest.fixture(scope="module")
def pipe():
    loaded = PixArtAlphaPipeline.from_pretrained(model_path("shapes-pixart"), torch_dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def latents(pipe, config=None):
    generators = [torch.Generator().manual_seed(index) for index in range(4)]
    call = {**generation_defaults("shapes-pixart"), "output_type": "latent"}
    if config is None:
        return pipe(prompts(4, 5), generator=generators, **call).images
    with fastcache(pipe, config):
        return pipe(prompts(4, 5), generator=generators, **call).images


@pytest.mark.parametrize("name", PRESETS)
def test_masks_keep_within_the_budget(name):
    schedule = FastCacheConfig.from_file(CONFIGS[name]).schedule
    assert sorted(schedule) == [20, 30, 50]
    for steps, mask in schedule.items():
        assert PRESETS[name] - 1 / steps < mask.count("1") / steps <= PRESETS[name] + 1e-3


def test_balanced_beats_the_uniform_mask_that_nobody_fitted(pipe):
    truth, config = latents(pipe), FastCacheConfig.from_file(CONFIGS["balanced"])
    uniform = config.model_copy(
        update={"calibration": None, "stand_in": "history", "schedule": {20: uniform_mask(20, 8)}}
    )
    assert psnr(latents(pipe, config), truth) > psnr(latents(pipe, uniform), truth) + 3


def test_changed_weights_are_refused(pipe):
    weight = pipe.transformer.transformer_blocks[4].ff.net[0].proj.weight
    original = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(1.2)
    with pytest.raises(ValueError, match="another model: weights is .* here"):
        fastcache(pipe, FastCacheConfig.from_file(CONFIGS["balanced"])).__enter__()
    with torch.no_grad():
        weight.copy_(original)
    assert not hasattr(pipe.transformer, "_fastcache_handle")
