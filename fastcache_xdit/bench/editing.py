"""Edit a picture locally: something new inside a box, everything else as it was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class LocalEdit:
    """A pipeline's `callback` that puts the known latents back outside a box after every step (arXiv 2201.09865).

    Attributes:
        scheduler: the pipeline's; it adds as much noise as the next step expects.
        known: final latents of the picture to edit, [B, C, H, W].
        noise: what the known latents are mixed with before the last step, [B, C, H, W].
        side: length of the centred box, as a share of the picture's.
    """

    scheduler: Any
    known: torch.Tensor
    noise: torch.Tensor
    side: float = 0.5

    def __call__(self, step: int, timestep: Any, latents: torch.Tensor) -> None:
        """Change the running `latents`, [B, C, H, W], in place."""
        following = self.scheduler.timesteps[step + 1 : step + 2]
        known = self.scheduler.add_noise(self.known, self.noise, following) if len(following) else self.known
        rows, columns = box(latents, self.side)
        inside = latents[..., rows, columns].clone()
        latents.copy_(known)
        latents[..., rows, columns] = inside


def box_mask(latents: torch.Tensor, side: float) -> torch.Tensor:
    """Return a mask [H, W] for latents [..., H, W]: 1 in the centred box, 0 elsewhere."""
    mask = torch.zeros(latents.shape[-2:])
    mask[box(latents, side)] = 1
    return mask


def box(images: torch.Tensor, side: float) -> tuple[slice, slice]:
    """Return rows and columns of the centred box in [..., H, W]."""
    rows, columns = (slice(round(size * (1 - side) / 2), round(size * (1 + side) / 2)) for size in images.shape[-2:])
    return rows, columns
