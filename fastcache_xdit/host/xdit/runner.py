"""Let xDiT's runner, which knows models by name, run a checkpoint folder on disk."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from fastcache_xdit.clips import Clip
from fastcache_xdit.errors import UsageError
from fastcache_xdit.host.xdit import world
from fastcache_xdit.host.xdit.checkpoint import pipeline_class
from fastcache_xdit.host.xdit.loading import XditOptions
from fastcache_xdit.options import unknown_option
from fastcache_xdit.undo import Undo

# Pipeline class: xDiT's model name.
RUNNERS = {
    "FluxPipeline": "FLUX.1-dev",
    "QwenImagePipeline": "Qwen-Image",
    "StableDiffusion3Pipeline": "SD3.5",
    "WanPipeline": "Wan2.1-T2V",
}


def check_registered(name: str) -> None:
    """Raise UsageError unless xDiT's runner has a model of this name."""
    from xfuser.model_executor.models.runner_models.base_model import MODEL_REGISTRY

    if name not in MODEL_REGISTRY:
        known = ", ".join(sorted(MODEL_REGISTRY, key=str.lower))
        near = unknown_option(name, MODEL_REGISTRY, f"give a checkpoint folder, or a model of xDiT's runner: {known}")
        raise UsageError(f"no such model: {name}", near.advice)


def hub_id(name: str) -> str:
    """Return the folder or hub id that xDiT's model called `name` is loaded from. Raises UsageError as above."""
    from xfuser.model_executor.models.runner_models.base_model import MODEL_REGISTRY

    check_registered(name)
    return MODEL_REGISTRY[name].settings.model_name or name


def check_accepted(name: str, options: XditOptions, flags: Mapping[str, Any]) -> None:
    """Raise UsageError where xDiT's model called `name` refuses these options, or its runner's flags behind them."""
    from xfuser.model_executor.models.runner_models.base_model import MODEL_REGISTRY

    world.be_alone()  # xDiT asks for its rank whenever it logs
    try:
        MODEL_REGISTRY[name](copy.copy(options)).preprocess_args(dict(flags))  # no weights are loaded
    except ValueError as error:
        raise UsageError(f"xDiT's runner refuses these options: {error}") from None


def add_local_model(name: str) -> None:
    """Register the folder `name` as a runner model of that name, run as xDiT runs its kind of pipeline.

    Raises:
        UsageError: the runner has no such pipeline.
    """
    from xfuser.model_executor.models.runner_models.base_model import MODEL_REGISTRY, register_model

    kind = pipeline_class(Path(name))
    if kind not in RUNNERS:
        raise UsageError(
            f"xDiT's runner cannot run a {kind} from a folder",
            f"it can run {', '.join(RUNNERS)}. Use the generate command, or enable(pipe) in Python",
        )
    base = MODEL_REGISTRY[RUNNERS[kind]]
    settings = dataclasses.replace(base.settings, model_name=name)
    register_model(name)(type(f"Local{base.__name__}", (base,), {"settings": settings}))


def write_clips(undo: Undo) -> None:
    """Have xDiT's runner write clips as `generate` does where neither package that it asks for is installed."""
    from xfuser.model_executor.models.runner_models import base_model

    if not any(importlib.util.find_spec(name) for name in ("imageio", "cv2")):
        undo.set(base_model, "export_to_video", _write_clip)


def _write_clip(frames: Sequence[Any], path: str, fps: int) -> None:
    """Write frames, PIL images or float arrays [H, W, 3] in 0..1, as an mp4 file."""
    pictures = (
        frame if isinstance(frame, Image.Image) else Image.fromarray((frame * 255).round().astype("uint8"))
        for frame in frames
    )
    Path(path).write_bytes(Clip(tuple(pictures), fps).mp4())
