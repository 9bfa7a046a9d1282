"""The parts that tiny pipelines of diffusers are built from, and arguments of their calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from diffusers.pipelines.consisid import pipeline_consisid

from tests import tiny
from tests.models import zoo
from tests.tiny_parts import CHANNELS, autoencoder


def built(kind: str, transformer: str, scheduler: Any, vae: Any = None, config: Any = None) -> Callable[[], Any]:
    """Return what builds a pipeline of diffusers around a tiny transformer, without what reads text."""

    def build() -> Any:
        found = getattr(pipeline_consisid, kind, None) or getattr(diffusers, kind)
        parts = dict.fromkeys(found._get_signature_keys(found)[0])
        parts["transformer"] = zoo.build(transformer, config).requires_grad_(False)
        parts["scheduler"] = type(scheduler).from_config(scheduler.config)
        with tiny.seeded(1):
            return found(**{**parts, "vae": vae and vae()})

    return build


def text(name: str = "prompt_embeds", seed: int = 1, width: int = zoo.TEXT) -> dict[str, torch.Tensor]:
    """Embeddings of one prompt and of its negative."""
    return {f"{sign}{name}": zoo.normal(1, zoo.WORDS, width, seed=seed + len(sign)) for sign in ("", "negative_")}


def masks(*names: str) -> dict[str, torch.Tensor]:
    """Masks that keep all words."""
    return {f"{sign}{name}": torch.ones(1, zoo.WORDS) for name in names for sign in ("", "negative_")}


def call(*latents: int, pixels: int = 64, **more: Any) -> dict[str, Any]:
    """Start noise [1, *latents], size and guidance of a call that ends in latents."""
    noise = zoo.normal(1, *latents, seed=9)
    return dict(height=pixels, width=pixels, output_type="latent", guidance_scale=3.5, latents=noise, **more)


def frames_vae() -> Any:
    """An autoencoder of frames, for pipelines that begin at a picture."""
    down, up = ("CogVideoXDownBlock3D",) * 4, ("CogVideoXUpBlock3D",) * 4
    sizes = dict(block_out_channels=(8,) * 4, latent_channels=4, norm_num_groups=4, layers_per_block=1)
    return diffusers.AutoencoderKLCogVideoX(down_block_types=down, up_block_types=up, **sizes).eval()


def unet() -> Any:
    """Build a tiny Stable Diffusion XL."""
    with tiny.seeded(0):
        unet = diffusers.UNet2DConditionModel(
            sample_size=zoo.SIDE, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), cross_attention_dim=zoo.TEXT,
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=(1, 2), use_linear_projection=True,
            addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=zoo.TEXT + 6 * 8,
        )  # fmt: skip
    scheduler = diffusers.DPMSolverMultistepScheduler(prediction_type="v_prediction")
    names = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    parts = dict(unet=unet.eval(), scheduler=scheduler, vae=autoencoder("pixart"))
    return diffusers.StableDiffusionXLPipeline(**parts, **dict.fromkeys(names), add_watermarker=False)


def flux_control() -> Any:
    """Build a tiny FLUX.1 that follows a control image."""
    changes = dict(in_channels=8 * CHANNELS, out_channels=4 * CHANNELS)
    parts = tiny.pipeline("flux", **changes).components
    names = ("scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "transformer")
    return diffusers.FluxControlPipeline(**{name: parts[name] for name in names})
