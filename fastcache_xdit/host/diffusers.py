"""The host for plain diffusers: a pipeline, or a bare transformer in a user's own loop."""

from __future__ import annotations

from typing import Any

from torch import nn

from fastcache_xdit.errors import UsageError
from fastcache_xdit.host.base import Host
from fastcache_xdit.models.watch import uncompiled


def diffusers_host(target: Any) -> Host:
    """Return the host of a diffusers pipeline or transformer.

    Raises:
        UsageError: there is not exactly one transformer, or another cache or diffusers' context parallelism is on.
    """
    transformer = target if isinstance(target, nn.Module) else transformer_of(target)
    refuse_rivals(transformer)
    host = Host(transformer, uncompiled(transformer), getattr(target, "scheduler", None))
    host.pipe = None if target is transformer else target
    host.others, host.boundary = others_of(target)
    return host


def transformer_of(pipe: Any) -> nn.Module:
    """Return the transformer or U-Net of a pipeline, the first one that it calls.

    Raises:
        UsageError: there is none.
    """
    # a compiled one has no truth value where its class has no length
    denoiser = next((part for name in ("transformer", "unet") if (part := getattr(pipe, name, None)) is not None), None)
    if not isinstance(denoiser, nn.Module):
        raise UsageError(
            f"{type(pipe).__name__} has no transformer or U-Net",
            "FastCache takes a diffusers or xDiT pipeline with one, or the transformer itself",
        )
    return denoiser


def others_of(target: Any) -> tuple[tuple[nn.Module, ...], float | None]:
    """Return the transformers that take the place of a pipeline's first one, and the noise level below which they do.

    Raises:
        UsageError: there are two, and nothing says which one is called when.
    """
    second = getattr(target, "transformer_2", None)
    if not isinstance(second, nn.Module):
        return (), None
    options = getattr(target, "config", {})
    if "boundary_ratio" not in options:
        raise UsageError(
            f"{type(target).__name__} has two transformers, and no boundary_ratio says when the second one is called",
            "FastCache takes pipelines like those of Wan 2.2",
        )
    refuse_rivals(second)
    boundary = options["boundary_ratio"]
    return ((second,), boundary) if boundary else ((), None)  # without a boundary the first one alone is called


def refuse_rivals(transformer: nn.Module) -> None:
    """Refuse a transformer with another cache on, as each would measure the approximations of the other.

    Raises:
        UsageError: another cache, or diffusers' context parallelism, is on; says what to do instead.
    """
    if getattr(transformer, "is_cache_enabled", False):
        raise UsageError("a diffusers cache is enabled on this transformer", "call transformer.disable_cache() first")
    if getattr(transformer, "_parallel_config", None) is not None:
        raise UsageError(
            "diffusers' own context parallelism is not supported: its ranks would decide apart",
            "run the model under xDiT (ulysses_degree, ring_degree) instead",
        )
