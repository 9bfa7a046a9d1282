"""How alike two runs of a request are: their decoded pictures, and their final latents."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

from fastcache_xdit.learning.ranks import Ranks
from fastcache_xdit.learning.trajectory import Trajectory
from fastcache_xdit.undo import Undo

MOST_VALUES = 1 << 18  # kept of the pictures of one request


class Pictures:
    """Keeps some values of what a pipeline's autoencoder decodes; nothing for a pipeline without one."""

    def __init__(self, pipe: Any, undo: Undo) -> None:
        self._values: list[torch.Tensor] = []
        self._thread: int | None = None  # in which pictures are taken; others may decode meanwhile
        vae = getattr(pipe, "vae", None)
        if vae is not None and hasattr(vae, "decode"):
            undo.wrap(vae, "decode", self._decoding)

    @contextlib.contextmanager
    def taking(self) -> Iterator[None]:
        """Keep what is decoded inside a with block, and nothing of what was decoded before."""
        self._values, self._thread = [], threading.get_ident()
        try:
            yield
        finally:
            self._thread = None

    def taken(self) -> torch.Tensor | None:
        """Return the values, 0 to 1, of the last with block, and forget them; None without any."""
        values, self._values = self._values, []
        return torch.cat(values) if values else None

    def _decoding(self, decode: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        output = decode(*args, **kwargs)
        if self._thread != threading.get_ident():
            return output
        values = output[0].detach().flatten()
        few = values[:: -(-len(values) // MOST_VALUES)].float().cpu()
        # rounded as in the picture that is looked at: at 60 dB nearly all of the difference is of the rounding
        self._values.append((few / 2 + 0.5).clamp(0, 1).mul(255).round().div(255))
        return output


def squared_difference(pictures: torch.Tensor | None, others: torch.Tensor | None) -> torch.Tensor:
    """Return the sum of squared differences and the number of values, [2] float64; zeros where there is nothing."""
    if pictures is None or others is None or pictures.shape != others.shape:
        return torch.zeros(2, dtype=torch.float64)
    difference = (pictures - others).double()
    return torch.tensor([float(difference.square().sum()), float(len(difference))], dtype=torch.float64)


def psnr_db(sums: torch.Tensor) -> float | None:
    """Return the PSNR in dB of a request's pictures, from the sums over all ranks; None where nothing was decoded."""
    total, count = sums
    return float(-10 * (total / count).clamp_min(1e-10).log10()) if count else None


def latents_decibels(trajectory: Trajectory, reference: Trajectory, ranks: Ranks) -> torch.Tensor:
    """Return -20 log10(relative error) of a request's final latents over all ranks, for each sample, [B] float64.

    Samples at the same place in the batches of replicas are one; where these batches differ in size, all are.
    """
    own = _squares(trajectory, reference) if trajectory.steps else None
    parts = [part for part in ranks.all(own) if part is not None]
    if len({len(part) for part in parts}) > 1:
        parts = [part.sum(dim=0, keepdim=True) for part in parts]
    error, energy = torch.stack(parts).sum(dim=0).unbind(dim=1)
    return -10 * (error / energy).clamp_min(1e-30).log10()


def _squares(trajectory: Trajectory, reference: Trajectory) -> torch.Tensor:
    """Return squared error and energy of each sample of this rank's final latents, [B, 2] float64."""
    latents, wanted = (each.latents()[-1].double().unflatten(0, (each.samples, -1)) for each in (trajectory, reference))
    return torch.stack([(latents - wanted).square().sum(dim=(1, 2)), wanted.square().sum(dim=(1, 2))], dim=1).cpu()


class Guard:
    """Compares served requests with the same ones computed in full.

    Attributes:
        likeness: of each request in dB: PSNR of its pictures, or of one that was not decoded that of its latents.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self.likeness: list[float] = []

    def compared(
        self, pictures: torch.Tensor | None, wanted: torch.Tensor | None, served: Trajectory, whole: Trajectory
    ) -> float | None:
        """Note the likeness of a request on all ranks; return the PSNR of its pictures, None without any."""
        psnr = psnr_db(self._ranks.total(squared_difference(pictures, wanted)))
        latents = latents_decibels(served, whole, self._ranks).mean()
        self.likeness.append(float(latents) if psnr is None else psnr)
        return psnr
