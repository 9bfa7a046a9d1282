"""The weights of a model: by what they are known again, and how they are kept where they are rounded."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from fastcache_xdit.host.base import Host

PLAIN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)  # dtypes of weights that are not rounded further
SAMPLED = 8  # modules of a model that is not known


def norms(host: Host) -> dict[str, float]:
    """Return the weight norms of some modules, which tell a fine-tune from the original."""
    return {name: _norm(module) for name, module in _looked_at(host).items()}


def samples(host: Host) -> dict[str, float]:
    """Return one number of each weight that is a plain number, which tell a fused adapter from the original.

    They are read at once from each device.
    """
    found = {
        f"{part}.{name}": weight.detach()[(0,) * weight.ndim].float().reshape(1)
        for part, module in _looked_at(host).items()
        for name, weight in _plain_weights(module)
        if weight.numel()
    }
    read: dict[str, float] = {}
    for device in {number.device for number in found.values()}:
        names = [name for name, number in found.items() if number.device == device]
        read |= dict(zip(names, torch.cat([found[name] for name in names]).tolist(), strict=True))
    return read


def quantisation(host: Host) -> list[str]:
    """Return the ways in which weights are kept rounded, such as `Int8Tensor`; none where all are plain numbers."""
    layers = [layer for model in (host.model, *host.others) for layer in model.modules()]
    packed = {layer._get_name() for layer in layers if callable(getattr(layer, "weight", None))}  # torch's own
    weights = {name for model in (host.model, *host.others) for each in _weights(model) if (name := _rounded(each))}
    return sorted(packed | weights)


def _looked_at(host: Host) -> dict[str, nn.Module]:
    """Return every fourth block by name; of a model whose blocks are not known, or of two, some modules."""
    if host.is_known and not host.others:
        return {block.name: block.module for block in host.blocks if block.index % 4 == 0}
    found: dict[str, nn.Module] = {}
    for number, model in enumerate((host.model, *host.others)):
        layers = [(name, layer) for name, layer in model.named_modules() if vars(layer)["_parameters"]]
        sampled = layers[:: max(1, len(layers) // SAMPLED)]
        found |= {f"{name} of transformer {number + 1}" if number else name: layer for name, layer in sampled}
    return found


def _norm(module: nn.Module) -> float:
    return sum(_numbers(weight).float().square().sum().item() for weight in _weights(module)) ** 0.5


def _numbers(weight: torch.Tensor) -> torch.Tensor:
    return weight.dequantize() if _is_quantised(weight) else weight.detach()


def _is_quantised(weight: torch.Tensor) -> bool:
    """Return whether this is another library's tensor of rounded numbers, as of torchao and quanto."""
    return type(weight).dequantize is not torch.Tensor.dequantize


def _rounded(weight: torch.Tensor) -> str:
    """Name how a weight is kept rounded; empty for plain numbers. Rounded activations are another way."""
    packed = getattr(weight, "quant_type", "")  # of bitsandbytes
    if not _is_quantised(weight) and not packed:
        return "" if weight.dtype in PLAIN else str(weight.dtype).removeprefix("torch.")
    kind = packed or getattr(getattr(weight, "qtype", None), "name", "")
    rounds_activations = getattr(weight, "act_quant_kwargs", None) or getattr(weight, "activation_qtype", None)
    return " ".join(filter(None, (type(weight).__name__, kind, rounds_activations and "dynamic")))


def _plain_weights(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights that are plain numbers by their names, which adapters around their layers do not change."""
    for name, weight in _named_weights(module):
        if not _rounded(weight) and "lora_" not in name:
            yield name.replace("base_layer.", ""), weight


def _weights(module: nn.Module) -> Iterator[torch.Tensor]:
    """Yield the weights of a module, without those of adapters, which may be there and not be used."""
    return (weight for name, weight in _named_weights(module) if "lora_" not in name)


def _named_weights(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the parameters of a module; those that accelerate has offloaded one by one from where it keeps them."""
    for path, part in module.named_modules():
        hook = getattr(part, "_hf_hook", None)
        kept = [hooked.weights_map for hooked in getattr(hook, "hooks", [hook]) if getattr(hooked, "weights_map", None)]
        for name, parameter in part.named_parameters(recurse=False):
            yield f"{path}.{name}".lstrip("."), kept[0][name] if parameter.is_meta and kept else parameter
