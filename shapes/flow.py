"""Flow matching, as every shipped scheduler samples it.

x = (1 - sigma) x0 + sigma noise; the model predicts noise - x0 at timestep 1000 sigma.
"""

from __future__ import annotations

import random

import torch
from diffusers import AutoencoderKL
from transformers import PreTrainedTokenizerBase

from .sampling import sample_scene
from .shapes import caption, draw_batch

TRAIN_TIMESTEPS = 1000
# Encoding is not free: a scene is drawn and encoded once, then used with several draws of (sigma, noise).
DRAWS = 4
# One length, just above that of the longest caption, so that compiled blocks see a single shape.
CAPTION_TOKENS = 16
# Share of scenes that are shown without their caption, for classifier-free guidance.
CAPTION_DROPOUT = 0.1
_UNIFORM_SHARE = 0.25


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and mask, each int64 [N, 16], of N texts."""
    tokens = tokenizer(texts, padding="max_length", max_length=CAPTION_TOKENS, return_tensors="pt")
    return tokens.input_ids, tokens.attention_mask


@torch.no_grad()
def draw_latents(vae: AutoencoderKL, rng: random.Random, count: int) -> tuple[list[str], torch.Tensor]:
    """Draw fresh training scenes; return their captions and scaled latents, float32 [count, 4, 16, 16]."""
    scenes = [sample_scene(rng) for _ in range(count)]
    with torch.autocast("cpu", torch.bfloat16):
        latents = vae.encode(draw_batch(scenes)).latent_dist.mode()
    return [caption(scene) for scene in scenes], latents.float() * vae.config.scaling_factor


def sample_sigma(count: int) -> torch.Tensor:
    """Draw noise levels [count] in 0..1: logit-normal, a quarter of them uniform so that the ends are seen too."""
    uniform = torch.rand(count)
    return torch.where(torch.rand(count) < _UNIFORM_SHARE, uniform, torch.randn(count).sigmoid())


def add_noise(latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return noisy latents, their sigma [N], and the velocity noise - x0, for clean float32 latents [N, ...]."""
    sigma, noise = sample_sigma(latents.shape[0]), torch.randn_like(latents)
    level = sigma.view(-1, *[1] * (latents.ndim - 1))
    return (1 - level) * latents + level * noise, sigma, noise - latents
