"""The identity of a running or saved model, which a calibration must match (see `approx.identity`)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastcache_xdit.host.base import Host

SAMPLED = 8  # modules of a model that is not known
_NOT_THE_MODEL = ("_name_or_path", "_diffusers_version", "_class_name", "_use_default_values")


def identity(host: Host) -> dict[str, Any]:
    """Return class names, digests of configs, active adapters, and without tensor parallelism norms of some weights."""
    sharded = host.topology.tensor_parallel_degree > 1
    kind = type(getattr(host.scheduler, "module", host.scheduler)).__name__  # xDiT wraps it as `module`
    scheduler = ("", {}) if host.scheduler is None else (kind, host.scheduler.config)
    return {
        **_configs(_class_of(host), [model.config for model in (host.model, *host.others)], host.boundary, *scheduler),
        "weights": {} if sharded else _fingerprint(host),
        "adapters": adapters(host),
    }


def adapters(host: Host) -> list[str]:
    """Return the names of the active adapters."""
    return sorted(getattr(host.model, "active_adapters", list)()) if _adapted(host.model) else []


def saved_identity(folder: Path) -> dict[str, Any]:
    """Return the identity of a pipeline on disk without loading it: all but weights and adapters."""
    parts = json.loads((folder / "model_index.json").read_text())
    scheduler = _from_config(folder / "scheduler", parts["scheduler"][1])
    second = ["transformer_2"] if parts.get("boundary_ratio") else []
    with torch.device("meta"):
        models = [_from_config(folder / name, parts[name][1]) for name in ("transformer", *second)]
    configs = [model.config for model in models]
    return _configs(
        type(models[0]).__name__, configs, parts.get("boundary_ratio"), type(scheduler).__name__, scheduler.config
    )


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


def _digest(config: Any) -> str:
    own_values = {name: value for name, value in dict(config).items() if name not in _NOT_THE_MODEL}
    return hashlib.sha256(json.dumps(own_values, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _class_of(host: Host) -> str:
    return host.spec.name if host.is_known else type(host.model).__name__


def _fingerprint(host: Host) -> dict[str, float]:
    """Return the weight norms of every fourth block, which tell a fine-tune or a fused adapter from the original.

    Of a model whose blocks are not known, or of two, those of some modules.
    """
    if host.is_known and not host.others:
        return {block.name: _norm(block.module) for block in host.blocks if block.index % 4 == 0}
    norms: dict[str, float] = {}
    for number, model in enumerate((host.model, *host.others)):
        layers = [(name, layer) for name, layer in model.named_modules() if vars(layer)["_parameters"]]
        sampled = layers[:: max(1, len(layers) // SAMPLED)]
        norms |= {f"{name} of transformer {number + 1}" if number else name: _norm(layer) for name, layer in sampled}
    return norms


def _norm(module: nn.Module) -> float:
    return sum(weight.detach().float().square().sum().item() for weight in _weights(module)) ** 0.5


def _weights(module: nn.Module) -> Iterator[torch.Tensor]:
    """Yield the parameters of a module; those that accelerate has offloaded one by one from where it keeps them."""
    for part in module.modules():
        hook = getattr(part, "_hf_hook", None)
        kept = [hooked.weights_map for hooked in getattr(hook, "hooks", [hook]) if getattr(hooked, "weights_map", None)]
        for name, parameter in part.named_parameters(recurse=False):
            yield kept[0][name] if parameter.is_meta and kept else parameter
