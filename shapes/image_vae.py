"""The autoencoder of images, and its training batches."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from .recipe import VaeRecipe
from .sampling import sample_any_scene
from .shapes import IMAGE_SIZE, Scene, draw_batch

_CROP = 64
_CROP_BATCH, _IMAGE_BATCH = 24, 8


def build_vae() -> AutoencoderKL:
    """Build an autoencoder from images [3, 128, 128] in -1..1 to latents [4, 16, 16], with random weights."""
    vae = AutoencoderKL(
        # Few channels at full resolution, where a decoder on CPU spends its time.
        block_out_channels=(16, 16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=IMAGE_SIZE,
        mid_block_add_attention=False,
    )
    return vae.to(memory_format=torch.channels_last)


def load_vae(folder: Path) -> AutoencoderKL:
    """Load an autoencoder in float32."""
    return AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32).to(memory_format=torch.channels_last)


def decode(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """Decode latents [N, 4, H / 8, W / 8] to images [N, 3, H, W] in -1..1."""
    return vae.decode(latents).sample


def _corner(rng: random.Random, centre: float, radius: float) -> int:
    return int(min(max(centre + rng.uniform(-1, 1) * (radius + 6) - _CROP / 2, 0), IMAGE_SIZE - _CROP))


def _crop(image: torch.Tensor, scene: Scene, rng: random.Random) -> torch.Tensor:
    shape = rng.choice(scene.objects)
    x, y = (_corner(rng, centre, shape.radius) for centre in shape.centre)
    return image[:, y : y + _CROP, x : x + _CROP]


def _batch(rng: random.Random, crops: bool) -> torch.Tensor:
    scenes = [sample_any_scene(rng) for _ in range(_CROP_BATCH // 2 if crops else _IMAGE_BATCH)]
    images = draw_batch(scenes)
    if crops:
        images = torch.stack([_crop(i, s, rng) for i, s in zip(images, scenes, strict=True) for _ in range(2)])
    return images.contiguous(memory_format=torch.channels_last)


def _statistics(latents: torch.Tensor) -> dict[str, float]:
    return {"scaling_factor": 1 / latents.std().item()}


IMAGE_VAE = VaeRecipe(build=build_vae, load=load_vae, decode=decode, batch=_batch, statistics=_statistics)
