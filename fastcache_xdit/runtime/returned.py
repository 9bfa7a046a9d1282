"""Finds the tensor in what a denoiser returned, whatever its form, and puts another one in its place."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch

from fastcache_xdit.errors import UsageError


def tensor_of(output: Any) -> torch.Tensor:
    """Return the tensor in what a denoiser returned: itself, the first one of a tuple, or the only one of fields.

    What xDiT's FLUX.1 returns is a tuple in a tuple, and what diffusers returns has its tensor first.

    Raises:
        UsageError: there is none, or more than one field holds one.
    """
    if isinstance(output, torch.Tensor):
        return output
    if isinstance(output, tuple | list):
        return tensor_of(output[0])
    tensor: torch.Tensor = _fields(output)[_name(output)]
    return tensor


def with_tensor(output: Any, tensor: torch.Tensor) -> Any:
    """Return an output like this one with another tensor in it."""
    if isinstance(output, torch.Tensor):
        return tensor
    if isinstance(output, tuple | list):
        parts = [with_tensor(output[0], tensor), *output[1:]]
        return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)
    name = _name(output)
    if isinstance(output, Mapping):
        changed: Any = {**output, name: tensor}
        return changed if type(output) is dict else type(output)(**changed)
    changed = copy.copy(output)
    object.__setattr__(changed, name, tensor)
    return changed


def _fields(output: Any) -> Mapping[str, Any]:
    return output if isinstance(output, Mapping) else getattr(output, "__dict__", {})


def _name(output: Any) -> str:
    """Return the name of the field with the tensor."""
    names = [name for name, value in _fields(output).items() if isinstance(value, torch.Tensor)]
    if len(names) == 1 or (names and hasattr(output, "to_tuple")):  # diffusers' outputs, which have theirs first
        return names[0]
    raise UsageError(
        f"the model returns {type(output).__name__} with {len(names)} tensors, of which one is to be estimated",
        "return a tensor, or a tuple, a dict or an object with one tensor",
    )
