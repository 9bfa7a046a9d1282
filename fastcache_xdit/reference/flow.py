"""Flow matching on latents of fresh scenes: the model as one module, its data and its loss.

Convention, as the shipped scheduler samples it: x = (1 - sigma) x0 + sigma noise, timestep = 1000 sigma, and the
model predicts noise - x0.
"""

from __future__ import annotations

import random

import torch
from diffusers import AutoencoderKL, PixArtTransformer2DModel
from torch import nn
from transformers import T5EncoderModel, T5Tokenizer

from .components import TRAIN_TIMESTEPS
from .sampling import sample_scene
from .shapes import caption, draw_batch

_CAPTION_TOKENS = 16
_CAPTION_DROPOUT = 0.1
_UNIFORM_SHARE = 0.25


class TextToLatent(nn.Module):
    """The two trained parts as one module: caption tokens and noisy latents in, velocity out."""

    def __init__(self, text_encoder: T5EncoderModel, transformer: PixArtTransformer2DModel) -> None:
        super().__init__()
        self.text_encoder, self.transformer = text_encoder, transformer

    def forward(
        self, ids: torch.Tensor, mask: torch.Tensor, latents: torch.Tensor, sigma: torch.Tensor
    ) -> torch.Tensor:
        """Velocity for each row.

        Args:
            ids, mask: int64 of shape (S, L), caption tokens of S scenes; row r of ``latents`` belongs to scene r // K.
            latents: float32 of shape (S * K, 4, 16, 16), noisy.
            sigma: float32 of shape (S * K,) in [0, 1].
        """
        draws = latents.shape[0] // ids.shape[0]
        text = self.text_encoder(ids, attention_mask=mask)[0].repeat_interleave(draws, 0)
        return self.transformer(
            latents,
            encoder_hidden_states=text,
            encoder_attention_mask=mask.repeat_interleave(draws, 0),
            timestep=sigma * TRAIN_TIMESTEPS,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]


class SceneStream:
    """Endless training batches: caption tokens and clean scaled latents of fresh scenes."""

    def __init__(self, vae: AutoencoderKL, tokenizer: T5Tokenizer, rng: random.Random) -> None:
        self.vae, self.tokenizer, self.rng = vae, tokenizer, rng

    @torch.no_grad()
    def next(self, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Token ids and mask of shape (count, 16), and float32 latents of shape (count, 4, 16, 16)."""
        scenes = [sample_scene(self.rng) for _ in range(count)]
        texts = ["" if self.rng.random() < _CAPTION_DROPOUT else caption(scene) for scene in scenes]
        # One fixed length, just above the longest caption, so that compiled blocks see one shape only.
        tokens = self.tokenizer(texts, padding="max_length", max_length=_CAPTION_TOKENS, return_tensors="pt")
        with torch.autocast("cpu", torch.bfloat16):
            latents = self.vae.encode(draw_batch(scenes)).latent_dist.mode()
        return tokens.input_ids, tokens.attention_mask, latents.float() * self.vae.config.scaling_factor


def sample_sigma(count: int) -> torch.Tensor:
    """Noise levels in (0, 1), shape (count,): logit-normal, with a uniform share so that the ends are seen too."""
    uniform = torch.rand(count)
    return torch.where(torch.rand(count) < _UNIFORM_SHARE, uniform, torch.randn(count).sigmoid())


def flow_loss(model: nn.Module, ids: torch.Tensor, mask: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """Mean squared velocity error (scalar) with fresh noise; shapes as for :class:`TextToLatent`."""
    sigma, noise = sample_sigma(latents.shape[0]), torch.randn_like(latents)
    level = sigma.view(-1, 1, 1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        velocity = model(ids, mask, (1 - level) * latents + level * noise, sigma)
    return (velocity.float() - (noise - latents)).pow(2).mean()
