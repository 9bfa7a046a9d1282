"""The autoencoder of videos, and its training batches."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from torch import nn

from .recipe import VaeRecipe
from .shapes import IMAGE_SIZE
from .videos import Clip, draw_clips, frames, sample_any_clip

LATENT_CHANNELS = 16
# Pixels are packed 4x4 before the first layer, since full resolution is where a CPU would spend its time.
_PACKING = 4
_CROP = 64
_CROP_BATCH, _VIDEO_BATCH = 8, 2


def build_vae() -> AutoencoderKLWan:
    """Build an autoencoder from videos [3, 9, 128, 128] in -1..1 to latents [16, 3, 8, 8], with random weights."""
    vae = AutoencoderKLWan(
        base_dim=24,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        # shortcuts around every stage, without which training takes far longer to find the first shape
        is_residual=True,
        temperal_downsample=[True, True],
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
        in_channels=3 * _PACKING**2,
        out_channels=3 * _PACKING**2,
        patch_size=_PACKING,
        scale_factor_temporal=4,
        scale_factor_spatial=4 * _PACKING,
    )
    # Noise would drown the latents at first, so they start almost free of it.
    nn.init.constant_(vae.quant_conv.bias[LATENT_CHANNELS:], -6.0)
    return _channels_last(vae)


def load_vae(folder: Path) -> AutoencoderKLWan:
    """Load an autoencoder in float32."""
    return _channels_last(AutoencoderKLWan.from_pretrained(folder, torch_dtype=torch.float32))


def _channels_last(vae: nn.Module) -> nn.Module:
    # not by Module.to, which fails on the convolutions of single frames
    for parameter in vae.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
    return vae


def decode(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """Decode latents without the final clamp, which has no gradient outside -1..1."""
    chunks: list[torch.Tensor] = []
    hook = vae.decoder.register_forward_hook(lambda module, arguments, output: chunks.append(output))
    vae.decode(latents)
    hook.remove()
    return unpatchify(torch.cat(chunks, 2), _PACKING)


def _corner(rng: random.Random, centre: float, radius: float) -> int:
    return int(min(max(centre + rng.uniform(-1, 1) * (radius + 6) - _CROP / 2, 0), IMAGE_SIZE - _CROP))


def _crop(video: torch.Tensor, clip: Clip, rng: random.Random) -> torch.Tensor:
    shape = rng.choice(frames(clip)).objects[0]
    x, y = (_corner(rng, centre, shape.radius) for centre in shape.centre)
    return video[:, :, y : y + _CROP, x : x + _CROP]


def _batch(rng: random.Random, crops: bool) -> torch.Tensor:
    clips = [sample_any_clip(rng) for _ in range(_CROP_BATCH if crops else _VIDEO_BATCH)]
    videos = draw_clips(clips)
    if crops:
        videos = torch.stack([_crop(video, clip, rng) for video, clip in zip(videos, clips, strict=True)])
    return videos.contiguous(memory_format=torch.channels_last_3d)


def _statistics(latents: torch.Tensor) -> dict[str, list[float]]:
    channels = latents.transpose(0, 1).flatten(1)
    return {"latents_mean": channels.mean(1).tolist(), "latents_std": channels.std(1).tolist()}


VIDEO_VAE = VaeRecipe(build=build_vae, load=load_vae, decode=decode, batch=_batch, statistics=_statistics)
