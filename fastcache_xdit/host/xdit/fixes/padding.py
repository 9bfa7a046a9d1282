"""A fix for padding that attention without packing of its keys attends to."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch

from fastcache_xdit.undo import Undo

_UNPACKED = ("SDPA", "SDPA_FLASH", "SDPA_MATH", "SDPA_EFFICIENT", "CUDNN")


def trailing_keys(undo: Undo) -> bool:
    """Attend to no padding behind the keys, where the kernel takes neither packed keys nor a mask.

    A model that pads its sequence (MiniMax H3) gives both the valid keys' numbers, for kernels that pack, and their
    count, for the others. xDiT cuts by the count only where there are no numbers, so torch's kernels see the padding.
    """
    usp = importlib.import_module("xfuser.model_executor.layers.usp")
    distributed = importlib.import_module("xfuser.core.distributed")
    original = usp._get_attention_function

    def attention_function(backend: Any = None) -> Callable[..., Any]:
        function = original(backend)
        backend = distributed.get_runtime_state().attention_backend if backend is None else backend
        return _cutting(function) if backend.name in _UNPACKED else function

    undo.set(usp, "_get_attention_function", attention_function)
    return True


def _cutting(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def cut(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kwargs: Any) -> Any:
        given = kwargs.get("attention_kwargs") or {}
        if given.get("indices_k") is not None and (count := given.get("valid_kv_len")) is not None:
            key, value = key[:, :, :count], value[:, :, :count]
        return function(query, key, value, **kwargs)

    return cut
