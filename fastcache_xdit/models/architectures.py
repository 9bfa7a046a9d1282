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
        tiny: replaced values of the config, to try what runs it without a GPU.
        pixels_per_token: width and height of one token.
        frames_per_latent: of a clip; 1 for pictures.
    """

    pipeline: str
    transformer: str
    scheduler: str
    config: dict[str, Any]
    text: dict[str, Shape]
    empty: tuple[str, ...]
    call: dict[str, Any] = field(default_factory=dict)
    tiny: dict[str, Any] = field(default_factory=dict)
    pixels_per_token: int = 16
    frames_per_latent: int = 1


TINY = {"height": 64, "width": 64, "num_frames": 5}  # sizes of a request, likewise
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
        tiny={"num_layers": 1, "num_single_layers": 2, "num_attention_heads": 2},
    ),
    "pixart-sigma": Architecture(
        pipeline="PixArtSigmaPipeline",
        transformer="PixArtTransformer2DModel",
        scheduler="DPMSolverMultistepScheduler",
        config={"caption_channels": 4096, "interpolation_scale": 2, "use_additional_conditions": False},
        text={"prompt_embeds": (300, 4096), "negative_prompt_embeds": (300, 4096), **_MASKS},
        empty=_PARTS,
        call={"height": 1024, "width": 1024, "negative_prompt": None, "use_resolution_binning": False},
        tiny={"num_layers": 3, "num_attention_heads": 2, "cross_attention_dim": 144},
    ),
    "wan2.1-1.3b": Architecture(
        pipeline="WanPipeline",
        transformer="WanTransformer3DModel",
        scheduler="FlowMatchEulerDiscreteScheduler",
        config={"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
        text={"prompt_embeds": (512, 4096), "negative_prompt_embeds": (512, 4096)},
        empty=_PARTS,
        call={"height": 480, "width": 832, "num_frames": 81},
        tiny={"num_layers": 3, "num_attention_heads": 2, "ffn_dim": 64},
        frames_per_latent=4,
    ),
    "hunyuanvideo": Architecture(
        pipeline="HunyuanVideoPipeline",
        transformer="HunyuanVideoTransformer3DModel",
        scheduler="FlowMatchEulerDiscreteScheduler",
        config={},
        text={"prompt_embeds": (256, 4096), "pooled_prompt_embeds": (768,), "prompt_attention_mask": (256,)},
        empty=(*_PARTS, "text_encoder_2", "tokenizer_2"),
        call={"height": 720, "width": 1280, "num_frames": 129},
        tiny={"num_layers": 1, "num_single_layers": 2, "num_refiner_layers": 1, "num_attention_heads": 2},
        frames_per_latent=4,
    ),
}
