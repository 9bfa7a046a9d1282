"""shapes-flux: a Flux transformer that learns guided velocities from shapes-pixart.

Flux takes the guidance scale as an input. The target is the teacher's velocity at a random scale, which varies far less
than that of plain flow matching.
"""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel

from . import pixart
from .checker import check
from .clip import build_clip, build_clip_tokenizer
from .components import TEXT_WIDTH, build_tokenizer
from .flow import CAPTION_TOKENS, DRAWS, TRAIN_TIMESTEPS, add_noise, draw_latents, tokenize
from .image_vae import IMAGE_VAE, load_vae
from .loading import model_path
from .recipe import ModelRecipe, TrainingBatch
from .sampling import prompts
from .shapes import IMAGE_SIZE

_TEACHER = "shapes-pixart"
_GUIDANCE_RANGE = (1.0, 4.0)
# Answers of the teacher that wait for their second use.
_KEPT = 256
_LATENT_CHANNELS, _LATENT_SIZE, _VAE_FACTOR = 4, 16, 8


class TextsToPatches(nn.Module):
    """The three trained parts as one module, from caption tokens, noisy latents and guidance to guided velocity."""

    def __init__(self, clip: CLIPTextModel, t5: T5EncoderModel, transformer: FluxTransformer2DModel) -> None:
        super().__init__()
        self.clip, self.t5, self.transformer = clip, t5, transformer

    def forward(
        self,
        clip_ids: torch.Tensor,
        t5_ids: torch.Tensor,
        latents: torch.Tensor,
        sigma: torch.Tensor,
        guidance: torch.Tensor,
    ) -> torch.Tensor:
        """Predict the velocity of each row.

        Args:
            clip_ids: int64 [S, 16], captions of S scenes; row r of `latents` belongs to scene r // K.
            t5_ids: the same captions in the other tokenizer, int64 [S, 16].
            latents: noisy, float32 [S K, 4, 16, 16].
            sigma: float32 [S K] in 0..1.
            guidance: float32 [S K].

        Returns:
            float32 [S K, 4, 16, 16].
        """
        rows = latents.shape[0]
        draws = rows // clip_ids.shape[0]
        packed = self.transformer(
            FluxPipeline._pack_latents(latents, rows, _LATENT_CHANNELS, _LATENT_SIZE, _LATENT_SIZE),
            # No mask, as in the pipeline: padding is attended, and texts always have this length.
            encoder_hidden_states=self.t5(t5_ids)[0].repeat_interleave(draws, 0),
            pooled_projections=self.clip(clip_ids).pooler_output.repeat_interleave(draws, 0),
            timestep=sigma,
            img_ids=FluxPipeline._prepare_latent_image_ids(
                rows, _LATENT_SIZE // 2, _LATENT_SIZE // 2, latents.device, latents.dtype
            ),
            txt_ids=latents.new_zeros(t5_ids.shape[1], 3),
            guidance=guidance,
            return_dict=False,
        )[0]
        return FluxPipeline._unpack_latents(packed, IMAGE_SIZE, IMAGE_SIZE, _VAE_FACTOR)


def build_transformer() -> FluxTransformer2DModel:
    """Build four double and eight single stream blocks of width 192, which start as the zero function, as in DiT."""
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=_LATENT_CHANNELS * 4,
        num_layers=4,
        num_single_layers=8,
        attention_head_dim=24,
        num_attention_heads=8,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 10, 10),
    )
    double, single = model.transformer_blocks, model.single_transformer_blocks
    modulations = [norm.linear for block in double for norm in (block.norm1, block.norm1_context)]
    for layer in [*modulations, *(block.norm.linear for block in single), model.norm_out.linear, model.proj_out]:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return model


def parts(start_from: Path | None) -> TextsToPatches:
    """Load encoders and transformer of a pipeline folder in float32, or build new ones around the teacher's encoder."""
    if start_from is None:
        t5 = T5EncoderModel.from_pretrained(model_path(_TEACHER) / "text_encoder", dtype=torch.float32)
        return TextsToPatches(build_clip(build_clip_tokenizer(CAPTION_TOKENS)), t5, build_transformer())
    clip = CLIPTextModel.from_pretrained(start_from / "text_encoder", dtype=torch.float32)
    t5 = T5EncoderModel.from_pretrained(start_from / "text_encoder_2", dtype=torch.float32)
    transformer = FluxTransformer2DModel.from_pretrained(start_from / "transformer", torch_dtype=torch.float32)
    return TextsToPatches(clip, t5, transformer)


@cache
def _teacher() -> pixart.TextToLatent:
    return pixart.parts(model_path(_TEACHER)).requires_grad_(False).eval()


class Answer(NamedTuple):
    """The teacher's velocities for one scene with four draws of noise: `shown` the caption, and `free` of it."""

    clip_ids: torch.Tensor
    t5_ids: torch.Tensor
    noisy: torch.Tensor
    sigma: torch.Tensor
    shown: torch.Tensor
    free: torch.Tensor


class GuidedStream:
    """Noisy latents of fresh scenes, and the velocity that the teacher gives them at a random guidance scale.

    Asking the teacher costs as much as a training step, so every answer is used twice: at once, and much later with
    another scale.
    """

    def __init__(self, vae_folder: Path, rng: random.Random) -> None:
        self.vae, self.rng = load_vae(vae_folder), rng
        self.clip: CLIPTokenizer = build_clip_tokenizer(CAPTION_TOKENS)
        self.t5 = build_tokenizer(CAPTION_TOKENS)
        self.kept: list[Answer] = []

    def next(self, count: int) -> TrainingBatch:
        """Make inputs for `TextsToPatches` of `count` scenes with four draws of noise each."""
        reused = count // 2 if len(self.kept) >= _KEPT else 0
        old = [self.kept.pop(self.rng.randrange(len(self.kept))) for _ in range(reused)]
        fresh = self._ask(count - reused)
        self.kept += fresh
        clip_ids, t5_ids, noisy, sigma, shown, free = (torch.stack(part) for part in zip(*fresh, *old, strict=True))
        noisy, sigma, shown, free = (part.flatten(0, 1) for part in (noisy, sigma, shown, free))
        guidance = torch.empty_like(sigma).uniform_(*_GUIDANCE_RANGE)
        velocity = torch.lerp(free, shown, guidance.view(-1, 1, 1, 1))
        return TrainingBatch((clip_ids, t5_ids, noisy, sigma, guidance), velocity)

    @torch.no_grad()
    def _ask(self, count: int) -> list[Answer]:
        texts, latents = draw_latents(self.vae, self.rng, count)
        noisy, sigma, _ = add_noise(latents.repeat_interleave(DRAWS, 0))
        ids, mask = tokenize(self.t5, texts + [""] * count)
        with torch.autocast("cpu", torch.bfloat16):
            velocity = _teacher()(ids, mask, noisy.repeat(2, 1, 1, 1), sigma.repeat(2))
        shown, free = velocity.float().chunk(2)
        drawn = (part.unflatten(0, (count, DRAWS)) for part in (noisy, sigma, shown, free))
        return [Answer(*row) for row in zip(tokenize(self.clip, texts)[0], ids[:count], *drawn, strict=True)]


def build_pipeline(model: TextsToPatches, vae_folder: Path) -> FluxPipeline:
    """Build the text-to-image pipeline; its noise levels are evenly spaced, which suits so few tokens."""
    vae = load_vae(vae_folder)
    vae.register_to_config(shift_factor=0.0)
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=TRAIN_TIMESTEPS, shift=1.0)
    clip_tokenizer, t5_tokenizer = build_clip_tokenizer(CAPTION_TOKENS), build_tokenizer(CAPTION_TOKENS)
    return FluxPipeline(scheduler, vae, model.clip, clip_tokenizer, model.t5, t5_tokenizer, model.transformer)


RECIPE = ModelRecipe(
    vae=IMAGE_VAE,
    parts=parts,
    stream=GuidedStream,
    pipeline=build_pipeline,
    defaults={
        "guidance_scale": 3.5,
        "num_inference_steps": 20,
        "height": IMAGE_SIZE,
        "width": IMAGE_SIZE,
        "max_sequence_length": CAPTION_TOKENS,
    },
    prompts=prompts,
    check=check,
)
