"""A fix for Cosmos 3 under sequence parallelism, where ranks replicate the text."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch

from fastcache_xdit.undo import Undo


def shared_text(undo: Undo) -> bool:
    """Attend to each text token of Cosmos 3 once.

    Every rank holds the full text and puts it in front of its part of the keys of the video, so that the text's keys
    count once per rank.
    """
    module = importlib.import_module("xfuser.model_executor.models.transformers.transformer_cosmos3")
    original = module.USP

    @functools.wraps(original)
    def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        text = key.shape[2] - query.shape[2]
        front = {"joint_query": query[:, :, :0], "joint_key": key[:, :, :text], "joint_value": value[:, :, :text]}
        return original(query, key[:, :, text:], value[:, :, text:], joint_strategy="front", **front, **kwargs)

    undo.set(module, "USP", attention)
    return True
