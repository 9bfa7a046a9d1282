"""Train an autoencoder: L1 and L2 reconstruction, with a slight KL pull towards unit variance.

The decoder can be trained further on its own, which leaves the latents, and so the transformer, as they are.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import training
from .recipe import VaeRecipe

# Whole images cost four times as much as crops, but in the end normalisation must get used to them.
_CROPS_SHARE = 0.55
_LEARNING_RATE, _KL_WEIGHT = 2e-3, 1e-4
_DECODER_RATE = 1e-3
# Share of the latents' standard deviation: generated latents are never as clean as encoded ones.
_DECODER_NOISE = 0.05
_MEASURED = 256


def _reconstruction_loss(decoded: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    error = decoded.float() - images
    return error.abs().mean() + error.pow(2).mean()


def _vae_loss(recipe: VaeRecipe, vae: Any, images: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(images).latent_dist
        decoded = recipe.decode(vae, posterior.sample())
    kl = 0.5 * (posterior.mean.float().pow(2) + posterior.var.float() - 1 - posterior.logvar.float()).mean()
    return _reconstruction_loss(decoded, images) + _KL_WEIGHT * kl


def _decoder_loss(recipe: VaeRecipe, vae: Any, images: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            latents = vae.encode(images).latent_dist.mode().float()
        # one spread for all channels: near enough to the scale that each gets later
        noise = torch.randn_like(latents) * _DECODER_NOISE * latents.std()
        decoded = recipe.decode(vae, latents + noise)
    return _reconstruction_loss(decoded, images)


@torch.no_grad()
def measure(recipe: VaeRecipe, vae: Any, seed: int = 1) -> tuple[torch.Tensor, float]:
    """Encode fresh scenes; return their latents [N, C, ...] and the PSNR of their reconstructions in dB."""
    rng = random.Random(seed)
    latents: list[torch.Tensor] = []
    errors: list[torch.Tensor] = []
    while sum(len(part) for part in latents) < _MEASURED:
        images = recipe.batch(rng, False)
        latents.append(vae.encode(images).latent_dist.mode())
        errors.append((recipe.decode(vae, latents[-1]).clamp(-1, 1) - images).pow(2).mean())
    return torch.cat(latents), (10 * torch.log10(4 / torch.stack(errors).mean())).item()


def _fit(
    recipe: VaeRecipe,
    vae: Any,
    parts: list[nn.Module],
    loss_of: Callable[[VaeRecipe, Any, torch.Tensor], torch.Tensor],
    rng: random.Random,
    schedule: tuple[float, float],
    log: training.LossLog,
) -> None:
    """Train `parts` of the autoencoder; `schedule` = (learning rate, seconds)."""
    parameters = [p for part in parts for p in part.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=schedule[0], betas=(0.9, 0.99), weight_decay=1e-4)
    clock, step = training.TrainingClock(schedule[1]), 0
    while clock.progress < 1:
        training.set_learning_rate(optimizer, training.learning_rate_factor(step, clock.progress))
        loss = loss_of(recipe, vae, recipe.batch(rng, clock.progress < _CROPS_SHARE))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % training.LOG_EVERY_STEPS == 0:
            log.write(step=step, seconds=clock.spent, loss=loss.item())
        step += 1


def train_vae(recipe: VaeRecipe, minutes: float, seed: int, run_dir: Path) -> None:
    """Train the autoencoder in `run_dir`/vae for `minutes` of wall time, a new one where there is none.

    Optimiser and learning rate start anew with every call; the scale of the latents is measured at its end.
    """
    rng, log = training.seed_everything(seed), training.LossLog(run_dir / "vae-loss.jsonl")
    vae = recipe.load(run_dir / "vae").train() if (run_dir / "vae").exists() else recipe.build()
    _fit(recipe, vae, [vae], _vae_loss, rng, (_LEARNING_RATE, minutes * 60), log)
    latents, psnr = measure(recipe, vae.eval())
    vae.register_to_config(**recipe.statistics(latents))
    _save(vae, run_dir / "vae", psnr, log)


def train_decoder(recipe: VaeRecipe, minutes: float, seed: int, run_dir: Path) -> None:
    """Train the decoder in `run_dir`/vae alone for `minutes` more; encoder and latents stay as they are."""
    rng, log = training.seed_everything(seed), training.LossLog(run_dir / "decoder-loss.jsonl")
    vae = recipe.load(run_dir / "vae").train()
    _fit(recipe, vae, [vae.decoder, vae.post_quant_conv], _decoder_loss, rng, (_DECODER_RATE, minutes * 60), log)
    _save(vae, run_dir / "vae", measure(recipe, vae.eval())[1], log)


def _save(vae: Any, folder: Path, psnr: float, log: training.LossLog) -> None:
    vae.save_pretrained(folder)
    log.write(psnr=psnr)
