"""The identity of a running or saved model, which a calibration must match (see `approx.identity`)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastcache_xdit.host.base import Host
from fastcache_xdit.host.weights import norms, quantisation, samples

_NOT_THE_MODEL = ("_name_or_path", "_diffusers_version", "_class_name", "_use_default_values")


def identity(host: Host) -> dict[str, Any]:
    """Return class names, digests of configs, active adapters, and without tensor parallelism norms of some weights."""
    sharded = host.topology.tensor_parallel_degree > 1
    kind = type(getattr(host.scheduler, "module", host.scheduler)).__name__  # xDiT wraps it as `module`
    scheduler = ("", {}) if host.scheduler is None else (kind, host.scheduler.config)
    return {
        **_configs(_class_of(host), [model.config for model in (host.model, *host.others)], host.boundary, *scheduler),
        "weights": {} if sharded else norms(host),
        "samples": {} if sharded else samples(host),
        "adapters": adapters(host),
        "quantisation": quantisation(host),
    }


def adapters(host: Host) -> list[str]:
    """Return the names of the active adapters, with their strength where that is not 1, and whether they are fused."""
    if not _adapted(host.model):
        return []
    layers = [layer for layer in host.model.modules() if hasattr(layer, "merged_adapters")]
    if layers and all(layer.disable_adapters for layer in layers):
        return []
    return sorted(_described(name, layers) for name in getattr(host.model, "active_adapters", list)())


def saved_identity(folder: Path) -> dict[str, Any]:
    """Return the identity of a pipeline on disk without loading it: all but weights and adapters."""
    parts = _parts(folder)
    scheduler = _from_config(folder / "scheduler", parts["scheduler"][1])
    models = saved_models(folder)
    configs = [model.config for model in models]
    return _configs(
        type(models[0]).__name__, configs, parts.get("boundary_ratio"), type(scheduler).__name__, scheduler.config
    )


def saved_models(folder: Path) -> list[Any]:
    """Build the transformers of a pipeline on disk on the meta device, those that it calls alone."""
    parts = _parts(folder)
    second = ["transformer_2"] if parts.get("boundary_ratio") else []
    with torch.device("meta"):
        return [_from_config(folder / name, parts[name][1]) for name in ("transformer", *second)]


def _parts(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "model_index.json").read_text())


def _from_config(folder: Path, name: str) -> Any:
    import diffusers

    kind = getattr(diffusers, name)
    return kind.from_config(kind.load_config(folder))


def _configs(
    model: str, model_configs: Sequence[Any], boundary: float | None, scheduler: str, scheduler_config: Any
) -> dict[str, Any]:
    return {
        "model": model,
        "model_config": "+".join(map(_digest, model_configs)) + (f" at {boundary:g}" if boundary else ""),
        "scheduler": scheduler,
        "scheduler_config": _digest(scheduler_config),
    }


def _adapted(model: nn.Module) -> bool:
    return bool(getattr(model, "peft_config", None))


def _described(name: str, layers: Sequence[Any]) -> str:
    """Name an adapter with its strength: 1 where each layer has the one that it was made with."""
    strengths = {
        round(layer.scaling[name] * layer.r[name] / layer.lora_alpha[name], 6)
        for layer in layers
        if name in getattr(layer, "scaling", {}) and layer.r.get(name) and layer.lora_alpha.get(name)
    }
    told = " ".join(f"{strength:g}" for strength in sorted(strengths)) if strengths - {1.0} else ""
    fused = "fused" if any(name in layer.merged_adapters for layer in layers) else ""
    return " ".join(filter(None, (name, told, fused)))


def _digest(config: Any) -> str:
    own_values = {name: value for name, value in dict(config).items() if name not in _NOT_THE_MODEL}
    return hashlib.sha256(json.dumps(own_values, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _class_of(host: Host) -> str:
    return host.spec.name if host.is_known else type(host.model).__name__
