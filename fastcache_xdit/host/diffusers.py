"""The host for plain diffusers: a pipeline, or a bare transformer in a user's own loop."""

from __future__ import annotations

from typing import Any

from torch import nn

from fastcache_xdit.errors import UsageError
from fastcache_xdit.host.base import Host


def diffusers_host(target: Any) -> Host:
    """Return the host of a diffusers pipeline or transformer.

    Raises:
        UsageError: there is not exactly one transformer, or another cache or diffusers' context parallelism is on.
    """
    transformer = target if isinstance(target, nn.Module) else transformer_of(target)
    refuse_rivals(transformer)
    if getattr(transformer, "_parallel_config", None) is not None:
        raise UsageError(
            "diffusers' own context parallelism is not supported: its ranks would decide apart",
            "run the model under xDiT (ulysses_degree, ring_degree) instead",
        )
    return Host(transformer, transformer, getattr(target, "scheduler", None))


def transformer_of(pipe: Any) -> nn.Module:
    """Return the one transformer or U-Net of a pipeline.

    Raises:
        UsageError: there is none, or more than one.
    """
    denoiser = getattr(pipe, "transformer", None) or getattr(pipe, "unet", None)
    if not isinstance(denoiser, nn.Module):
        raise UsageError(
            f"{type(pipe).__name__} has no transformer or U-Net",
            "FastCache takes a diffusers or xDiT pipeline with one, or the transformer itself",
        )
    if isinstance(getattr(pipe, "transformer_2", None), nn.Module):
        raise UsageError(f"{type(pipe).__name__} has two transformers, which FastCache does not support yet")
    return denoiser


def refuse_rivals(transformer: nn.Module) -> None:
    """Refuse a transformer with another cache on, as each would measure the approximations of the other.

    Raises:
        UsageError: another cache is on; names what to call first.
    """
    if getattr(transformer, "is_cache_enabled", False):
        raise UsageError("a diffusers cache is enabled on this transformer", "call transformer.disable_cache() first")
