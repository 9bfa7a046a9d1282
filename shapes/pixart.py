"""shapes-pixart: a PixArt transformer and its text encoder, trained jointly by flow matching."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel
from torch import nn
from transformers import T5EncoderModel, T5Tokenizer

from .checker import check
from .components import TEXT_WIDTH, build_text_encoder, build_tokenizer
from .flow import CAPTION_DROPOUT, DRAWS, TRAIN_TIMESTEPS, add_noise, draw_latents, tokenize
from .image_vae import IMAGE_VAE, load_vae
from .recipe import ModelRecipe, TrainingBatch
from .sampling import prompts
from .shapes import IMAGE_SIZE

_MAX_TOKENS = 32


def tokenizer() -> T5Tokenizer:
    """Build the model's tokenizer."""
    return build_tokenizer(_MAX_TOKENS)


class TextToLatent(nn.Module):
    """The two trained parts as one module, from caption tokens and noisy latents to velocity."""

    def __init__(self, text_encoder: T5EncoderModel, transformer: PixArtTransformer2DModel) -> None:
        super().__init__()
        self.text_encoder, self.transformer = text_encoder, transformer

    def forward(
        self, ids: torch.Tensor, mask: torch.Tensor, latents: torch.Tensor, sigma: torch.Tensor
    ) -> torch.Tensor:
        """Predict the velocity of each row.

        Args:
            ids: int64 [S, L], captions of S scenes; row r of `latents` belongs to scene r // K.
            mask: int64 [S, L], 0 where `ids` is padding.
            latents: noisy, float32 [S K, 4, 16, 16].
            sigma: float32 [S K] in 0..1.

        Returns:
            float32 [S K, 4, 16, 16].
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


def parts(start_from: Path | None) -> TextToLatent:
    """Load text encoder and transformer of a pipeline folder in float32, or build them with random weights."""
    if start_from is None:
        return TextToLatent(build_text_encoder(len(tokenizer())), build_transformer())
    text_encoder = T5EncoderModel.from_pretrained(start_from / "text_encoder", dtype=torch.float32)
    transformer = PixArtTransformer2DModel.from_pretrained(start_from / "transformer", torch_dtype=torch.float32)
    return TextToLatent(text_encoder, transformer)


def build_transformer() -> PixArtTransformer2DModel:
    """Build a PixArt transformer of twelve blocks of width 224, which starts as the zero function, as in DiT."""
    model = PixArtTransformer2DModel(
        num_attention_heads=8,
        attention_head_dim=28,
        in_channels=4,
        out_channels=4,
        num_layers=12,
        cross_attention_dim=224,
        sample_size=16,
        patch_size=2,
        caption_channels=TEXT_WIDTH,
        norm_type="ada_norm_single",
    )
    _zero_outputs(model)
    return model


@torch.no_grad()
def _zero_outputs(model: PixArtTransformer2DModel) -> None:
    for layer in (model.adaln_single.linear, model.proj_out):
        layer.weight.zero_()
        layer.bias.zero_()
    for block in model.transformer_blocks:
        # Gates start at zero through the table and the shared projection; cross attention has no gate of its own.
        block.scale_shift_table.zero_()
        block.attn2.to_out[0].weight.zero_()
        block.attn2.to_out[0].bias.zero_()


class SceneStream:
    """Noisy latents of fresh scenes, some without their caption, and their velocity."""

    def __init__(self, vae_folder: Path, rng: random.Random) -> None:
        self.vae, self.tokenizer, self.rng = load_vae(vae_folder), tokenizer(), rng

    def next(self, count: int) -> TrainingBatch:
        """Make inputs for `TextToLatent` of `count` scenes with four draws of noise each."""
        texts, latents = draw_latents(self.vae, self.rng, count)
        texts = ["" if self.rng.random() < CAPTION_DROPOUT else text for text in texts]
        noisy, sigma, velocity = add_noise(latents.repeat_interleave(DRAWS, 0))
        return TrainingBatch((*tokenize(self.tokenizer, texts), noisy, sigma), velocity)


def build_pipeline(model: TextToLatent, vae_folder: Path) -> PixArtAlphaPipeline:
    """Build the text-to-image pipeline, sampled by DPM-Solver++."""
    scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=TRAIN_TIMESTEPS,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=1.0,
    )
    vae = load_vae(vae_folder)
    return PixArtAlphaPipeline(tokenizer(), model.text_encoder, vae, model.transformer, scheduler)


RECIPE = ModelRecipe(
    vae=IMAGE_VAE,
    parts=parts,
    stream=SceneStream,
    pipeline=build_pipeline,
    defaults={
        "guidance_scale": 2.5,
        "num_inference_steps": 20,
        "height": IMAGE_SIZE,
        "width": IMAGE_SIZE,
        "max_sequence_length": _MAX_TOKENS,
        "use_resolution_binning": False,
        "clean_caption": False,
    },
    prompts=prompts,
    check=check,
)
