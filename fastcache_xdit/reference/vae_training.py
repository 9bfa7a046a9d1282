"""Training of the shapes autoencoder: L1 and L2 reconstruction with a slight KL pull towards unit variance."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import nn

from . import training
from .components import build_vae
from .shapes import IMAGE_SIZE, Scene, draw_batch, sample_any_scene

_CROP = 64
# Whole images cost four times as much as crops but are what the group norms must get used to in the end.
_CROPS_SHARE = 0.55
_CROP_BATCH, _IMAGE_BATCH = 24, 8
_LEARNING_RATE, _KL_WEIGHT = 2e-3, 1e-4


def _corner(rng: random.Random, centre: float, radius: float) -> int:
    return int(min(max(centre + rng.uniform(-1, 1) * (radius + 6) - _CROP / 2, 0), IMAGE_SIZE - _CROP))


def _crop(image: torch.Tensor, scene: Scene, rng: random.Random) -> torch.Tensor:
    shape = rng.choice(scene.objects)
    x, y = (_corner(rng, centre, shape.radius) for centre in shape.centre)
    return image[:, y : y + _CROP, x : x + _CROP]


def _batch(rng: random.Random, crops: bool) -> torch.Tensor:
    """Images of shape (N, 3, S, S), float32 in [-1, 1], channels last; S is 64 for crops and else 128."""
    scenes = [sample_any_scene(rng) for _ in range(_CROP_BATCH // 2 if crops else _IMAGE_BATCH)]
    images = draw_batch(scenes)
    if crops:
        images = torch.stack([_crop(i, s, rng) for i, s in zip(images, scenes, strict=True) for _ in range(2)])
    return images.contiguous(memory_format=torch.channels_last)


def _loss(vae: AutoencoderKL, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(images).latent_dist
        decoded = vae.decode(posterior.sample()).sample
    error = decoded.float() - images
    mse = error.pow(2).mean()
    kl = 0.5 * (posterior.mean.float().pow(2) + posterior.var.float() - 1 - posterior.logvar.float()).mean()
    return error.abs().mean() + mse + _KL_WEIGHT * kl, mse.detach()


@torch.no_grad()
def measure(vae: AutoencoderKL, count: int = 256, seed: int = 1) -> dict[str, float]:
    """Latent statistics and reconstruction quality on ``count`` fresh scenes.

    Returns:
        ``{"mean", "std", "psnr"}``: mean and standard deviation of all latent values, and PSNR in dB over all pixels.
    """
    rng = random.Random(seed)
    latents, errors = [], []
    for _ in range(count // 32):
        images = draw_batch([sample_any_scene(rng) for _ in range(32)])
        latents.append(vae.encode(images).latent_dist.mode())
        errors.append((vae.decode(latents[-1]).sample.clamp(-1, 1) - images).pow(2).mean())
    values, mse = torch.cat(latents), torch.stack(errors).mean()
    return {"mean": values.mean().item(), "std": values.std().item(), "psnr": (10 * torch.log10(4 / mse)).item()}


def _step(vae: nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor) -> tuple[float, float]:
    loss, mse = _loss(vae, images)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
    optimizer.step()
    return loss.item(), mse.item()


def train_vae(minutes: float, seed: int, run_dir: Path) -> AutoencoderKL:
    """Train for ``minutes`` of wall time and save the result under ``run_dir``/vae.

    Returns:
        The float32 autoencoder with ``scaling_factor`` set so that scaled latents have unit standard deviation.
    """
    rng = training.seed_everything(seed)
    vae = build_vae().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=_LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    log = training.LossLog(run_dir / "vae-loss.jsonl")
    clock, step = training.Clock(minutes * 60), 0
    while clock.progress < 1:
        training.set_learning_rate(optimizer, training.learning_rate_factor(step, clock.progress))
        loss, mse = _step(vae, optimizer, _batch(rng, clock.progress < _CROPS_SHARE))
        if step % training.LOG_EVERY_STEPS == 0:
            log.write(step=step, seconds=clock.spent, loss=loss, mse=mse)
        step += 1
    return _finish(vae.eval(), run_dir, log)


def _finish(vae: AutoencoderKL, run_dir: Path, log: training.LossLog) -> AutoencoderKL:
    statistics = measure(vae)
    vae.register_to_config(scaling_factor=1 / statistics["std"])
    vae = vae.to(memory_format=torch.contiguous_format)
    vae.save_pretrained(run_dir / "vae")
    log.write(**statistics)
    return vae
