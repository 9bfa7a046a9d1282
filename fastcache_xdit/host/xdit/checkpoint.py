"""A checkpoint on disk: what it is, and the layouts in which it can run, without loading any weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fastcache_xdit.errors import UsageError
from fastcache_xdit.host.xdit.layout import Layout, check_degrees, every_layout
from fastcache_xdit.models.catalogue import spec_named
from fastcache_xdit.models.tried import Tried, all_tried

GUIDED = ("PixArtAlphaPipeline", "PixArtSigmaPipeline", "SanaPipeline")  # xDiT runs both branches in any case


def check_call(folder: Path, layout: Layout, call: Mapping[str, Any]) -> None:
    """Raise UsageError where diffusers, or xDiT in this layout, would fail on what a pipeline is called with."""
    kind, guidance = pipeline_class(folder), call.get("guidance_scale")
    if kind == "PixArtAlphaPipeline" and call.get("num_inference_steps") == 1:
        _check_one_step(folder)
    if kind in GUIDED and guidance is not None and guidance <= 1 and layout.ranks > layout.data_parallel_degree:
        raise UsageError(
            f"guidance_scale={guidance:g} is not supported where ranks share one picture: xDiT runs both branches of a "
            f"{kind} there",
            "set guidance_scale above 1, or divide the prompts alone, with data_parallel_degree",
        )


def _check_one_step(folder: Path) -> None:
    """Raise UsageError where a single step is not what PixArt takes it for: that of a scheduler that shows the end."""
    import diffusers

    config = _config(folder / "scheduler" / "scheduler_config.json")
    scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
    scheduler.set_timesteps(1)
    nothing = torch.zeros(1, 1, 1, 1)
    if len(scheduler.step(nothing, scheduler.timesteps[0], nothing, return_dict=False)) == 1:
        raise UsageError(
            f"num_inference_steps=1 fails with PixArtAlphaPipeline and {config['_class_name']}",
            "take 2 steps or more, or a scheduler of a distilled model, such as LCMScheduler",
        )


def check_model(folder: Path, layout: Layout) -> None:
    """Raise UsageError where a checkpoint cannot run in this layout."""
    kind = transformer_class(folder)
    _check_size(kind, _config(folder / "transformer" / "config.json"), layout)
    _check_kind(kind, pipeline_class(folder), layout)


def _check_size(kind: str, config: dict[str, Any], layout: Layout) -> None:
    heads, shares = config.get("num_attention_heads"), layout.ulysses_degree * layout.tensor_parallel_degree
    if heads and heads % shares:
        raise UsageError(f"{heads} attention heads of {kind} do not divide by ulysses x tensor parallel = {shares}")
    blocks = sum(config.get(name) or 0 for name in ("num_layers", "num_single_layers"))
    if blocks and blocks < layout.pipefusion_parallel_degree:
        raise UsageError(f"{blocks} blocks of {kind} are too few for {layout.pipefusion_parallel_degree} stages")


def _check_kind(kind: str, pipeline: str, layout: Layout) -> None:
    tried = all_tried().get(kind, Tried())
    for degree in (name for name, value in layout.degrees.items() if value > 1):
        if reason := tried.refusal(pipeline, degree):
            raise UsageError(reason, f"it has {', '.join(tried.layouts)}" if tried.layouts else "")


def possible_layouts(world_size: int, folder: Path | None) -> list[Layout]:
    """List every layout of so many ranks, of those in which the checkpoint in `folder`, if any, can run."""
    return [layout for layout in every_layout(world_size) if _is_possible(layout, world_size, folder)]


def _is_possible(layout: Layout, world_size: int, folder: Path | None) -> bool:
    try:
        check_degrees(layout, world_size)
        if folder:
            check_model(folder, layout)
    except UsageError:
        return False
    return True


def pipeline_class(folder: Path) -> str:
    """Read the class name of the pipeline saved in `folder`. Raises UsageError where it holds none."""
    return _config(folder / "model_index.json").get("_class_name", "")


def parts(folder: Path) -> set[str]:
    """Name the parts of the pipeline saved in `folder`. Raises UsageError where it holds none."""
    entries = _config(folder / "model_index.json").items()
    return {name for name, entry in entries if isinstance(entry, list) and entry[0]}


def transformer_class(folder: Path) -> str:
    """Read the class name of the transformer saved in `folder`. Raises UsageError where the pipeline has none."""
    entry = _config(folder / "model_index.json").get("transformer")
    if not entry or not entry[1]:
        raise UsageError(f"{folder} holds a {pipeline_class(folder)} without transformer", "FastCache needs one")
    return entry[1]


def pixels_per_token(folder: Path) -> int:
    """Width and height of one token of the pipeline saved in `folder`, in pixels: sizes are multiples of it."""
    transformer, vae = (_config(folder / part / "config.json") for part in ("transformer", "vae"))
    scales = vae.get("block_out_channels") or vae.get("encoder_block_out_channels") or [0] * 4
    pixels_per_latent = vae.get("scale_factor_spatial") or 2 ** (len(scales) - 1)
    patch = spec_named(transformer_class(folder)).packed or transformer.get("patch_size", 1)
    return pixels_per_latent * (patch if isinstance(patch, int) else max(patch))


def frames_per_latent(folder: Path) -> int:
    """Frames of a clip for each latent of the pipeline saved in `folder`; 1 for pictures."""
    vae = _config(folder / "vae" / "config.json")
    halved = vae.get("temperal_downsample")  # as diffusers spells it
    return vae.get("scale_factor_temporal") or vae.get("temporal_compression_ratio") or 2 ** sum(halved or ())


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UsageError(f"{path.parent} is not a diffusers pipeline folder: {path.name} is missing")
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UsageError(f"{path} is not valid JSON: {error}") from None
