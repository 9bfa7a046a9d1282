"""Published models without their weights, as `bench speed` builds them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

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
