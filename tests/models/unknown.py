"""Tiny pipelines of models that the catalogue has no entry for, each with the arguments of a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch

Made = tuple[Any, dict[str, Any]]


def unet() -> Made:
    """Stable Diffusion: a U-Net, both branches of guidance in one batch."""
    model = diffusers.UNet2DConditionModel(
        block_out_channels=(32, 32),
        layers_per_block=1,
        sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    scheduler = diffusers.DDIMScheduler(clip_sample=False, steps_offset=1)
    pipe = diffusers.StableDiffusionPipeline(
        unet=model,
        vae=_autoencoder(),
        scheduler=scheduler,
        text_encoder=None,
        tokenizer=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return pipe, {**_texts(16, masks=False), "height": 16, "width": 16}


def aura_flow() -> Made:
    """AuraFlow: joins text and image between two lists of blocks."""
    model = diffusers.AuraFlowTransformer2DModel(
        sample_size=8,
        patch_size=2,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pos_embed_max_size=256,
    )
    pipe = diffusers.AuraFlowPipeline(transformer=model, vae=_autoencoder(), scheduler=_flow(), **_NO_TEXT)
    return pipe, {**_texts(32), "height": 32, "width": 32}


def ltx_video() -> Made:
    """LTX-Video: packed tokens of a video."""
    model = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=32,
    )
    stages = (True, True, False, False)
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
        spatio_temporal_scaling=stages,
        decoder_spatio_temporal_scaling=stages,
        patch_size=1,
    )
    pipe = diffusers.LTXPipeline(transformer=model, vae=vae, scheduler=_flow(), **_NO_TEXT)
    texts = {name: part.long() if "mask" in name else part for name, part in _texts(32).items()}
    return pipe, {**texts, "height": 32, "width": 32, "num_frames": 9}


def cog_video() -> Made:
    """CogVideoX: a video in five dimensions, a scheduler whose steps remember the ones before."""
    model = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=8,
        num_layers=2,
        sample_width=2,
        sample_height=2,
        sample_frames=9,
        patch_size=2,
        max_text_seq_length=7,
    )
    vae = diffusers.AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2
    )
    scheduler = diffusers.CogVideoXDDIMScheduler()
    pipe = diffusers.CogVideoXPipeline(transformer=model, vae=vae, scheduler=scheduler, **_NO_TEXT)
    return pipe, {**_texts(8, masks=False), "height": 16, "width": 16, "num_frames": 8}


UNKNOWN: dict[str, Callable[[], Made]] = {
    "U-Net": unet,
    "AuraFlow": aura_flow,
    "LTX-Video": ltx_video,
    "CogVideoX": cog_video,
}
_NO_TEXT = {"text_encoder": None, "tokenizer": None}


def _autoencoder() -> Any:
    return diffusers.AutoencoderKL(block_out_channels=(32,), latent_channels=4, norm_num_groups=8)


def _flow() -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler()


def _texts(width: int, masks: bool = True) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    texts = {f"{kind}_embeds": torch.randn(1, 7, width, generator=draw) for kind in ("prompt", "negative_prompt")}
    if masks:
        texts |= {f"{kind}_attention_mask": torch.ones(1, 7) for kind in ("prompt", "negative_prompt")}
    return texts
