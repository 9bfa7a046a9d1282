"""Tiny, seeded models and pipelines built from the real diffusers classes, in memory or as checkpoint folders.

Depth and heads divide by 4, so that Ulysses, tensor and pipeline degrees of 1, 2 and 4 all fit, and the default image
of 128 x 128 pixels cuts into equal patches for sequence degrees of 1, 2 and 4 with up to 4, 4 and 2 pipeline patches.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn

from tests.tiny_parts import CHANNELS, TEXT, autoencoder, encoders

TOKENS = 16  # length of the text, divisible by every sequence degree
PIXELS = 128
FRAMES = 5  # two in latents
GAIN = 0.5  # random weights at full size change far more from step to step than trained ones do
FAMILIES = ("pixart", "pixart_sigma", "flux", "sd3", "dit", "wan")  # "flux2" is there as well, for defects of xDiT only

_HEADS = {"num_attention_heads": 4, "attention_head_dim": 16}
_GRID = {"in_channels": CHANNELS, "sample_size": 16, "patch_size": 2}
_PIXART = {
    **_HEADS,
    "num_layers": 8,
    **_GRID,
    "out_channels": 2 * CHANNELS,
    "cross_attention_dim": 64,
    "caption_channels": TEXT,
    "use_additional_conditions": False,
}
_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "pixart": ("PixArtTransformer2DModel", _PIXART),
    "pixart_sigma": ("PixArtTransformer2DModel", _PIXART),
    "flux": (
        "FluxTransformer2DModel",
        {
            **_HEADS,
            "num_layers": 4,
            "num_single_layers": 4,
            "in_channels": 4 * CHANNELS,
            "joint_attention_dim": TEXT,
            "pooled_projection_dim": TEXT,
            "guidance_embeds": True,
            "axes_dims_rope": (4, 6, 6),
        },
    ),
    "flux2": (
        "Flux2Transformer2DModel",
        {
            **_HEADS,
            "num_layers": 4,
            "num_single_layers": 4,
            "in_channels": 4 * CHANNELS,
            "joint_attention_dim": TEXT,
            "axes_dims_rope": (4, 4, 4, 4),
        },
    ),
    "sd3": (
        "SD3Transformer2DModel",
        {
            **_HEADS,
            "num_layers": 8,
            **_GRID,
            "out_channels": CHANNELS,
            "caption_projection_dim": 64,
            "joint_attention_dim": TEXT,
            "pooled_projection_dim": TEXT,
            "pos_embed_max_size": 64,
            "qk_norm": "rms_norm",
        },
    ),
    "dit": (
        "DiTTransformer2DModel",
        {
            **_HEADS,
            "num_layers": 8,
            **_GRID,
            "out_channels": 2 * CHANNELS,
            "num_embeds_ada_norm": 1000,  # the pipeline takes label 1000 for "no class"
        },
    ),
    "wan": (
        "WanTransformer3DModel",
        {
            **_HEADS,
            "num_layers": 8,
            "in_channels": CHANNELS,
            "out_channels": CHANNELS,
            "text_dim": TEXT,
            "freq_dim": 32,
            "ffn_dim": 128,
        },
    ),
}
_PIPELINES = {
    "pixart": "PixArtAlphaPipeline",
    "pixart_sigma": "PixArtSigmaPipeline",
    "flux": "FluxPipeline",
    "flux2": "Flux2Pipeline",
    "sd3": "StableDiffusion3Pipeline",
    "dit": "DiTPipeline",
    "wan": "WanPipeline",
}


def transformer(family: str, seed: int = 0, **changes: Any) -> nn.Module:
    """Build the family's transformer with random weights that depend on nothing but `seed`; `changes` go to its config.

    Raises:
        KeyError: the family is unknown.
    """
    name, config = _MODELS[family]
    with seeded(seed):
        model = getattr(diffusers, name)(**{**config, **changes}).eval()
    return _calm(model).requires_grad_(False)


def pipeline(family: str, seed: int = 0, text: bool = False, **changes: Any) -> Any:
    """Build the family's diffusers pipeline in fp32; without `text` it has no encoders and takes embeddings only."""
    parts = {"transformer": transformer(family, seed, **changes), "scheduler": _scheduler(family)}
    with seeded(seed + 1):
        parts |= {"vae": autoencoder(family), **encoders(family, text)}
    made = getattr(diffusers, _PIPELINES[family])(**parts)
    made.set_progress_bar_config(disable=True)
    return made


def checkpoint(family: str, folder: str | Path, seed: int = 0, **changes: Any) -> Path:
    """Write the family's whole pipeline to `folder`, as `from_pretrained` of diffusers and xDiT read it."""
    pipeline(family, seed, text=True, **changes).save_pretrained(folder)
    return Path(folder)


def call_arguments(family: str, seed: int = 0, batch: int = 1, pixels: int = PIXELS, tokens: int = TOKENS) -> dict:
    """Return the arguments of one pipeline call that ends in latents: text, start noise, size, guidance."""
    draw = torch.Generator().manual_seed(seed)
    size = {"height": pixels, "width": pixels, "output_type": "latent"}
    if family == "dit":
        return {"class_labels": list(range(batch)), "generator": draw, "output_type": "pt"}
    prompt = torch.randn(batch, tokens, TEXT, generator=draw)
    negative = torch.randn(batch, tokens, TEXT, generator=draw)
    if family == "flux2":
        return {"prompt_embeds": prompt, "max_sequence_length": tokens, "generator": draw, **size}
    if family == "wan":
        video = {"num_frames": FRAMES, "generator": draw}
        return {"prompt_embeds": prompt, "negative_prompt_embeds": negative, **video, **size}
    side = pixels // 8
    noise = torch.randn(batch, CHANNELS, side, side, generator=draw)
    if family == "flux":
        noise = diffusers.FluxPipeline._pack_latents(noise, batch, CHANNELS, side, side)
        pooled = torch.randn(batch, TEXT, generator=draw)
        text = {"prompt_embeds": prompt, "pooled_prompt_embeds": pooled, "max_sequence_length": tokens}
        return {**text, "latents": noise, **size}
    both = {"prompt_embeds": prompt, "negative_prompt_embeds": negative, "latents": noise, **size}
    if family == "sd3":
        pooled = torch.randn(2, batch, TEXT, generator=draw)
        return {**both, "pooled_prompt_embeds": pooled[0], "negative_pooled_prompt_embeds": pooled[1]}
    mask = torch.ones(batch, tokens)
    masks = {"prompt_attention_mask": mask, "negative_prompt_attention_mask": mask}
    return {**both, **masks, "negative_prompt": None, "use_resolution_binning": False}


def forward_arguments(family: str, seed: int = 0, batch: int = 2, pixels: int = PIXELS, timestep: float = 500) -> dict:
    """Return the arguments of one forward of the bare transformer."""
    draw = torch.Generator().manual_seed(seed)
    side = pixels // 8
    image = torch.randn(batch, CHANNELS, side, side, generator=draw)
    text = torch.randn(batch, TOKENS, TEXT, generator=draw)
    time = torch.full((batch,), float(timestep))
    if family == "dit":
        return {"hidden_states": image, "timestep": time.long(), "class_labels": torch.zeros(batch, dtype=torch.long)}
    if family == "wan":
        image = torch.randn(batch, CHANNELS, 2, side, side, generator=draw)
    common = {"hidden_states": image, "encoder_hidden_states": text, "timestep": time}
    if family == "wan":
        return common
    if family.startswith("pixart"):
        return {**common, "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}
    common["pooled_projections"] = torch.randn(batch, TEXT, generator=draw)
    if family == "sd3":
        return common
    pipe = diffusers.FluxPipeline
    return {
        **common,
        "hidden_states": pipe._pack_latents(image, batch, CHANNELS, side, side),
        "timestep": time / 1000,
        "img_ids": pipe._prepare_latent_image_ids(batch, side // 2, side // 2, "cpu", torch.float32),
        "txt_ids": torch.zeros(TOKENS, 3),
        "guidance": torch.full((batch,), 3.5),
    }


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Make the block's random numbers depend on `seed` only, and leave the caller's generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _calm(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.data.mul_(GAIN)
    return model


def _scheduler(family: str) -> Any:
    if family in ("flux", "flux2", "sd3", "wan"):
        return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    bounded = {"prediction_type": "v_prediction"}  # noise predicted by random weights would grow with every step
    if family == "dit":
        return diffusers.DDIMScheduler(**bounded)
    return diffusers.DPMSolverMultistepScheduler(**bounded)
