"""Video pipelines: diffusers' own around xDiT's transformer, as xDiT's runner builds them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

PIPELINES = ("WanPipeline",)


def load(model: str, engine_config: Any, dtype: torch.dtype) -> Any:
    """The pipeline saved at `model`, its transformer xDiT's; sets up xDiT's runtime state."""
    from diffusers import WanPipeline
    from xfuser.core.distributed import initialize_runtime_state
    from xfuser.model_executor.models.transformers.transformer_wan import xFuserWanTransformer3DWrapper

    transformer = xFuserWanTransformer3DWrapper.from_pretrained(model, subfolder="transformer", torch_dtype=dtype)
    pipe = WanPipeline.from_pretrained(model, transformer=transformer, torch_dtype=dtype)
    initialize_runtime_state(pipe, engine_config)
    return pipe


def is_video(pipe: Any) -> bool:
    """Whether `load` made this pipeline."""
    return type(pipe).__name__ in PIPELINES


def first_of_replica() -> bool:
    """Whether this rank speaks for its data-parallel replica: all of its ranks end with the whole video."""
    from xfuser.core.distributed import get_sequence_parallel_rank

    return get_sequence_parallel_rank() == 0


def pictures(videos: Any) -> list[Any]:
    """One picture for each video of PIL frames; latents as they are."""
    return list(videos) if isinstance(videos, torch.Tensor) else [strip(each) for each in videos]


def strip(frames: Sequence[Image.Image]) -> Image.Image:
    """A video's frames side by side in one picture, so that whatever takes pictures takes videos."""
    width, height = frames[0].size
    whole = Image.new("RGB", (width * len(frames), height))
    for place, frame in enumerate(frames):
        whole.paste(frame, (place * width, 0))
    return whole
