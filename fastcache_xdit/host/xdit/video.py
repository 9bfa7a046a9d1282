"""Build video pipelines as xDiT's runner does: diffusers' own around xDiT's transformer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from fastcache_xdit.clips import Clip

PIPELINES = {"WanPipeline": 16, "WanVideoToVideoPipeline": 16}  # frames in a second that their models have learnt


def load(model: str, kind: str, engine_config: Any, dtype: torch.dtype) -> Any:
    """Load the pipeline saved at `model` as one of `PIPELINES` with xDiT's transformer; set up xDiT's runtime state."""
    import diffusers
    from xfuser.core.distributed import initialize_runtime_state
    from xfuser.model_executor.models.transformers.transformer_wan import xFuserWanTransformer3DWrapper

    transformer = xFuserWanTransformer3DWrapper.from_pretrained(model, subfolder="transformer", torch_dtype=dtype)
    pipe = getattr(diffusers, kind).from_pretrained(model, transformer=transformer, torch_dtype=dtype)
    # video to video counts halvings instead, which is wrong for autoencoders that begin with patches
    pipe.vae_scale_factor_spatial = pipe.vae.config.scale_factor_spatial
    pipe.vae_scale_factor_temporal = pipe.vae.config.scale_factor_temporal
    initialize_runtime_state(pipe, engine_config)
    return pipe


def is_video(pipe: Any) -> bool:
    """Tell whether `load` made this pipeline."""
    return type(pipe).__name__ in PIPELINES


def first_of_replica() -> bool:
    """Tell whether this rank speaks for its replica, all of whose ranks end with the whole video."""
    from xfuser.core.distributed import get_sequence_parallel_rank

    return get_sequence_parallel_rank() == 0


def usual_fps(pipe: Any) -> int:
    """Return how many frames in a second the pipeline's videos are meant for."""
    return PIPELINES[type(pipe).__name__]


def clips(videos: Any, fps: int) -> list[Any]:
    """Make a clip of each video of PIL frames; leave tensors as they are."""
    return list(videos) if isinstance(videos, torch.Tensor) else [Clip(tuple(frames), fps) for frames in videos]


def pictures(videos: Any) -> list[Any]:
    """Make one picture of each video of PIL frames; leave latents as they are."""
    return list(videos) if isinstance(videos, torch.Tensor) else [strip(frames) for frames in videos]


def strip(frames: Sequence[Image.Image]) -> Image.Image:
    """Put a video's frames side by side in one picture, so that whatever takes pictures takes videos."""
    width, height = frames[0].size
    picture = Image.new("RGB", (width * len(frames), height))
    for place, frame in enumerate(frames):
        picture.paste(frame, (place * width, 0))
    return picture
