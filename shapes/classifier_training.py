"""Train the shapes classifier: `python -m shapes.classifier_training`, a few minutes on one core."""

from __future__ import annotations

import argparse
import random

import torch
from safetensors.torch import save_file
from torch.nn.functional import avg_pool2d, binary_cross_entropy_with_logits, interpolate

from . import training
from .classifier import WEIGHTS, Classifier, labels
from .sampling import sample_any_scene
from .shapes import draw_batch

_BATCH, _RATE = 64, 2e-3
_NOISE = 0.05  # of values in 0..1: generated images are never as clean as drawn ones


def _batch(rng: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw images [N, 3, 128, 128] in 0..1, every second one blurred and noisy, and their labels [N, L]."""
    scenes = [sample_any_scene(rng) for _ in range(_BATCH)]
    images = (draw_batch(scenes) + 1) / 2
    spoilt = interpolate(avg_pool2d(images[::2], 2), scale_factor=2, mode="bilinear")
    images[::2] = spoilt + torch.randn_like(spoilt) * _NOISE * rng.random()
    return images, torch.tensor([labels(scene) for scene in scenes])


def train(minutes: float, seed: int) -> float:
    """Train for `minutes` of wall time, replace the shipped weights, and return the accuracy on fresh scenes."""
    rng, model = training.seed_everything(seed), Classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=1e-4)
    clock, step = training.TrainingClock(minutes * 60), 0
    while clock.progress < 1:
        training.set_learning_rate(optimizer, training.learning_rate_factor(step, clock.progress))
        images, truth = _batch(rng)
        optimizer.zero_grad(set_to_none=True)
        binary_cross_entropy_with_logits(model(images), truth).backward()
        optimizer.step()
        step += 1
    WEIGHTS.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: weight.half() for name, weight in model.state_dict().items()}, WEIGHTS)
    return _accuracy(model.eval(), random.Random(seed + 1))


@torch.no_grad()
def _accuracy(model: Classifier, rng: random.Random) -> float:
    images, truth = _batch(rng)
    return ((model(images) > 0) == (truth > 0.5)).float().mean().item()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=6.0, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    options = parser.parse_args()
    print(f"{train(options.minutes, options.seed):.4f} of labels right -> {WEIGHTS}")
