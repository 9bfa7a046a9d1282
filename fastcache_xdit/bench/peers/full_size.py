"""Build pipelines of published models' size with random weights, to time steps; they say nothing about quality."""

from __future__ import annotations

from typing import Any

import torch

from fastcache_xdit.host.xdit.engine import Batch
from fastcache_xdit.host.xdit.loading import DTYPES
from fastcache_xdit.models.architectures import Architecture, Shape


class FullSize:
    """A `Backend` with random weights, made on the device that uses them.

    Args:
        architecture: of `ARCHITECTURES`.
        dtype: of `DTYPES`.
        device: where it runs.
        compiled: compile the transformer in its place.
        changes: replaced values of the transformer's config, for tests.
    """

    ranks = 1

    def __init__(
        self, architecture: Architecture, dtype: str, device: str, compiled: bool = False, **changes: Any
    ) -> None:
        import diffusers

        kind = getattr(diffusers, architecture.transformer)
        transformer = _random(kind, {**architecture.config, **changes}, DTYPES[dtype], device)
        if compiled:
            transformer.compile()
        scheduler = getattr(diffusers, architecture.scheduler)()
        empty = dict.fromkeys(architecture.empty)
        pipeline = getattr(diffusers, architecture.pipeline)
        self.pipe = pipeline(transformer=transformer, scheduler=scheduler, **empty)
        self.pipe.set_progress_bar_config(disable=True)
        self._text = architecture.text
        self._dtype, self._device = DTYPES[dtype], device

    def generate(self, batch: Batch, call: dict[str, Any]) -> torch.Tensor:
        """Generate latents as `Backend` says, of random embeddings for each seed."""
        draw = torch.Generator().manual_seed(batch[0].seed)
        text = {name: self._drawn(name, (len(batch), *shape), draw) for name, shape in self._text.items()}
        return self.pipe(**{**call, "output_type": "latent"}, **text, generator=draw)[0].cpu()

    def _drawn(self, name: str, shape: Shape, draw: torch.Generator) -> torch.Tensor:
        """Draw embeddings, or make a mask that hides none of them."""
        drawn = torch.ones(shape) if name.endswith("mask") else torch.randn(shape, generator=draw)
        return drawn.to(self._device, self._dtype)


def _random(kind: Any, config: dict[str, Any], dtype: torch.dtype, device: str) -> torch.nn.Module:
    """Initialise a transformer on the device in the dtype; its weights are the same in every run."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.random.fork_rng(), torch.device(device):
            torch.manual_seed(0)
            model = kind(**config)
    finally:
        torch.set_default_dtype(before)
    return model.to(device).eval().requires_grad_(False)
