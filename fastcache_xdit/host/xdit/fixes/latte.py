"""A fix for Latte under sequence parallelism, where a rank holds all frames of its tokens."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch

from fastcache_xdit.undo import Undo


def local_frames(undo: Undo) -> bool:
    """Attend over the frames of a token on the rank that holds it.

    xDiT knows the attention over frames, but takes the function that exchanges tokens between ranks for it too, and so
    mixes what belongs to different places of the picture.
    """
    if importlib.import_module("xfuser.core.distributed").get_sequence_parallel_world_size() == 1:
        return False
    kind = importlib.import_module("xfuser.model_executor.layers.attention_processor").xFuserAttnProcessor2_0
    original, local = kind.__call__, super(kind, kind).__call__

    @functools.wraps(original)
    def attend(self: Any, attn: Any, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        over_frames = kwargs.pop("latte_temporal_attention", False)
        return (local if over_frames else original)(self, attn, hidden_states, **kwargs)

    undo.set(kind, "__call__", attend)
    return True
