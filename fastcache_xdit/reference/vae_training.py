"""Training of the shapes autoencoder: L1 and L2 reconstruction with a slight KL pull towards unit variance.

The decoder can be trained further on its own, which leaves the latents, and so the transformer, as they are.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import nn

from . import training
from .components import build_vae
from .sampling import sample_any_scene
from .shapes import IMAGE_SIZE, Scene, draw_batch

_CROP = 64
# Whole images cost four times as much as crops but are what the group norms must get used to in the end.
_CROPS_SHARE = 0.55
_CROP_BATCH, _IMAGE_BATCH = 24, 8
_LEARNING_RATE, _KL_WEIGHT = 2e-3, 1e-4
_DECODER_RATE = 1e-3
# Share of the latents' standard deviation: generated latents are never as clean as encoded ones.
_DECODER_NOISE = 0.05


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


def _reconstruction_loss(decoded: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    error = decoded.float() - images
    return error.abs().mean() + error.pow(2).mean()


def _vae_loss(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(images).latent_dist
        decoded = vae.decode(posterior.sample()).sample
    kl = 0.5 * (posterior.mean.float().pow(2) + posterior.var.float() - 1 - posterior.logvar.float()).mean()
    return _reconstruction_loss(decoded, images) + _KL_WEIGHT * kl


def _decoder_loss(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            latents = vae.encode(images).latent_dist.mode().float()
        noise = torch.randn_like(latents) * _DECODER_NOISE / vae.config.scaling_factor
        decoded = vae.decode(latents + noise).sample
    return _reconstruction_loss(decoded, images)


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


def _fit(
    vae: AutoencoderKL,
    parts: list[nn.Module],
    loss_of: Callable[[AutoencoderKL, torch.Tensor], torch.Tensor],
    rng: random.Random,
    schedule: tuple[float, float],
    log: training.LossLog,
) -> None:
    """Train ``parts`` of the VAE; ``schedule`` = (learning rate, seconds)."""
    parameters = [p for part in parts for p in part.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=schedule[0], betas=(0.9, 0.99), weight_decay=1e-4)
    clock, step = training.Clock(schedule[1]), 0
    while clock.progress < 1:
        training.set_learning_rate(optimizer, training.learning_rate_factor(step, clock.progress))
        loss = loss_of(vae, _batch(rng, clock.progress < _CROPS_SHARE))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % training.LOG_EVERY_STEPS == 0:
            log.write(step=step, seconds=clock.spent, loss=loss.item())
        step += 1


def train_vae(minutes: float, seed: int, run_dir: Path) -> AutoencoderKL:
    """Train for ``minutes`` of wall time and save the result under ``run_dir``/vae.

    Returns:
        The float32 autoencoder with ``scaling_factor`` set so that scaled latents have unit standard deviation.
    """
    rng, log = training.seed_everything(seed), training.LossLog(run_dir / "vae-loss.jsonl")
    vae = build_vae().to(memory_format=torch.channels_last)
    _fit(vae, [vae], _vae_loss, rng, (_LEARNING_RATE, minutes * 60), log)
    statistics = measure(vae.eval())
    vae.register_to_config(scaling_factor=1 / statistics["std"])
    return _save(vae, run_dir / "vae", statistics, log)


def train_decoder(minutes: float, seed: int, run_dir: Path) -> AutoencoderKL:
    """Train only the decoder of ``run_dir``/vae further for ``minutes``; encoder and latents stay as they are."""
    rng, log = training.seed_everything(seed), training.LossLog(run_dir / "decoder-loss.jsonl")
    vae = AutoencoderKL.from_pretrained(run_dir / "vae").to(memory_format=torch.channels_last).train()
    _fit(vae, [vae.decoder, vae.post_quant_conv], _decoder_loss, rng, (_DECODER_RATE, minutes * 60), log)
    return _save(vae, run_dir / "vae", measure(vae.eval()), log)


def _save(vae: AutoencoderKL, folder: Path, statistics: dict[str, float], log: training.LossLog) -> AutoencoderKL:
    vae = vae.to(memory_format=torch.contiguous_format)
    vae.save_pretrained(folder)
    log.write(**statistics)
    return vae
