"""Build pipelines of published models' size with random weights, to time steps; they say nothing about quality."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from fastcache_xdit.host.xdit.engine import Batch
from fastcache_xdit.host.xdit.loading import DTYPES

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Architecture:
    """A published model without its weights.

    Attributes:
        pipeline, transformer, scheduler: class names in diffusers.
        config: of the transformer, where the class's own defaults differ.
        text: shapes of one prompt's embeddings and masks, by the call's argument.
        empty: components that are not needed, since embeddings go in and latents come out.
        call: further arguments of the pipeline's call.
    """

    pipeline: str
    transformer: str
    scheduler: str
    config: dict[str, Any]
    text: dict[str, Shape]
    empty: tuple[str, ...]
    call: dict[str, Any] = field(default_factory=dict)


_PARTS = ("text_encoder", "tokenizer", "vae")
_MASKS: dict[str, Shape] = {"prompt_attention_mask": (300,), "negative_prompt_attention_mask": (300,)}
ARCHITECTURES = {
    "flux.1-dev": Architecture(
        pipeline="FluxPipeline",
        transformer="FluxTransformer2DModel",
        scheduler="FlowMatchEulerDiscreteScheduler",
        config={"guidance_embeds": True},
        text={"prompt_embeds": (512, 4096), "pooled_prompt_embeds": (768,)},
        empty=(*_PARTS, "text_encoder_2", "tokenizer_2"),
        call={"height": 1024, "width": 1024},
    ),
    "pixart-sigma": Architecture(
        pipeline="PixArtSigmaPipeline",
        transformer="PixArtTransformer2DModel",
        scheduler="DPMSolverMultistepScheduler",
        config={"caption_channels": 4096, "interpolation_scale": 2, "use_additional_conditions": False},
        text={"prompt_embeds": (300, 4096), "negative_prompt_embeds": (300, 4096), **_MASKS},
        empty=_PARTS,
        call={"height": 1024, "width": 1024, "negative_prompt": None, "use_resolution_binning": False},
    ),
    "wan2.1-1.3b": Architecture(
        pipeline="WanPipeline",
        transformer="WanTransformer3DModel",
        scheduler="FlowMatchEulerDiscreteScheduler",
        config={"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
        text={"prompt_embeds": (512, 4096), "negative_prompt_embeds": (512, 4096)},
        empty=_PARTS,
        call={"height": 480, "width": 832, "num_frames": 81},
    ),
}


class FullSize:
    """A `Backend` with random weights, made on the device that uses them.

    Args:
        architecture: of `ARCHITECTURES`.
        dtype: of `DTYPES`.
        device: where it runs.
        changes: replaced values of the transformer's config, for tests.
    """

    ranks = 1

    def __init__(self, architecture: Architecture, dtype: str, device: str, **changes: Any) -> None:
        import diffusers

        kind = getattr(diffusers, architecture.transformer)
        transformer = _random(kind, {**architecture.config, **changes}, DTYPES[dtype], device)
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
