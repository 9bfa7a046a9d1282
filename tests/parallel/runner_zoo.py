"""The transformer of every model of xDiT's runner: its wrapper, and the tiny diffusers model that it is built from."""

from __future__ import annotations

import importlib
import inspect
import tempfile
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from tests.models import zoo
from tests.models.loop import STEPS

LAYOUTS = {"ulysses 2": {"ulysses_degree": 2}, "ring 2": {"ring_degree": 2}}

_TRANSFORMERS = "xfuser.model_executor.models.transformers"


@dataclass(frozen=True)
class Runner:
    """A model of xDiT's runner.

    Attributes:
        name: what the runner calls it.
        wrapper: module and name of the transformer's wrapper, or of a function that returns it.
        config: changes of the tiny model, so that its heads divide.
    """

    name: str
    wrapper: str
    config: dict[str, Any] = field(default_factory=dict)


@dataclass
class Run:
    """What one rank saw of a loop."""

    latents: torch.Tensor
    choices: list[tuple]
    counts: dict[str, Any]


@dataclass
class Answer:
    """What one rank saw of a model in a layout, beside one process.

    Attributes:
        drift: relative distance of xDiT's own latents, without a cache, from those of diffusers in one process.
        error: the same distance, both with the cache.
        exact: a cache that skips nothing leaves every bit as it is.
    """

    drift: float
    error: float
    exact: bool
    run: Run
    alone: Run


RUNNERS = {
    "Cosmos3OmniTransformer": Runner(
        "Cosmos3-Nano", "cosmos3.get_cosmos3_transformer_wrapper_class", {"num_attention_heads": 4, "num_key_value_heads": 2}
    ),
    "Flux2Transformer2DModel": Runner("FLUX.2-dev", "flux2.xFuserFlux2Transformer2DWrapper"),
    "FluxTransformer2DModel": Runner("FLUX.1-dev", "flux.xFuserFlux1Transformer2DWrapper"),
    "HunyuanVideo15Transformer3DModel": Runner(
        "Hunyuanvideo-1.5", "hunyuan_video15.xFuserHunyuanVideo15Transformer3DWrapper"
    ),
    "HunyuanVideoTransformer3DModel": Runner("HunyuanVideo", "hunyuan_video.xFuserHunyuanVideoTransformer3DWrapper"),
    "Ideogram4Transformer2DModel": Runner("Ideogram-4", "ideogram4.get_ideogram4_transformer_wrapper_class"),
    "Krea2Transformer2DModel": Runner("Krea-2-Raw", "krea2.xFuserKrea2Transformer2DWrapper"),
    "LTX2VideoTransformer3DModel": Runner("LTX-2", "ltx2.xFuserLTX2VideoTransformer3DWrapper", {"rope_type": "split"}),
    "Lumina2Transformer2DModel": Runner("Lumina2", "lumina2.xFuserLumina2Transformer2DWrapper", {"num_kv_heads": 2}),
    "MiniMaxH3Transformer3DModel": Runner("MiniMax-H3", "minimax_h3.xFuserMiniMaxH3Transformer3DWrapper"),
    "QwenImageTransformer2DModel": Runner("Qwen-Image", "qwen.xFuserQwenImageTransformerWrapper"),
    "SD3Transformer2DModel": Runner("SD3.5", "sd3.xFuserSD3Transformer2DWrapper"),
    "WanTransformer3DModel": Runner("Wan2.1-T2V", "wan.xFuserWanTransformer3DWrapper"),
    "WanVACETransformer3DModel": Runner("Wan2.1-VACE-1.3B", "wan_vace.xFuserWanVACETransformer3DWrapper"),
    "ZImageTransformer2DModel": Runner("Z-Image", "z_image.xFuserZImageTransformer2DWrapper"),
}


TOLD = ("FluxTransformer2DModel", "Krea2Transformer2DModel")  # the runner tells xDiT about each request beforehand


def plain(name: str) -> nn.Module:
    """The tiny model in one process."""
    return zoo.build(name, RUNNERS[name].config)


def wrapped(name: str, config: Any) -> nn.Module:
    """The same model as the runner builds it, laid out by xDiT's engine config."""
    from xfuser.core.distributed import get_runtime_state, initialize_runtime_state
    from xfuser.model_executor.base_wrapper import xFuserBaseWrapper

    wrapper, model = _wrapper(name), plain(name)
    if issubclass(wrapper, xFuserBaseWrapper):
        initialize_runtime_state(SimpleNamespace(transformer=model, vae_scale_factor=8), config)
        return wrapper(model)
    model = _loaded(wrapper, model).eval()
    initialize_runtime_state(SimpleNamespace(transformer=model, vae_scale_factor=8), config)
    if hasattr(model, "_init_sp_state"):
        model._init_sp_state()
    if name in TOLD:
        get_runtime_state().set_input_parameters(
            batch_size=zoo.BATCH, num_inference_steps=STEPS, max_condition_sequence_length=zoo.WORDS
        )
    return model


def _loaded(wrapper: type, model: nn.Module) -> nn.Module:
    """Load the model as the runner does; that drops the config of a wrapper whose constructor names nothing."""
    parameters = inspect.signature(wrapper.__init__).parameters.values()
    if all(parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) for parameter in list(parameters)[1:]):
        loaded = wrapper(**{key: value for key, value in model.config.items() if not key.startswith("_")})
        loaded.load_state_dict(model.state_dict())
        return loaded
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return wrapper.from_pretrained(folder)


def _wrapper(name: str) -> type:
    module, _, attribute = RUNNERS[name].wrapper.partition(".")
    found = getattr(importlib.import_module(f"{_TRANSFORMERS}.transformer_{module}"), attribute)
    return found if isinstance(found, type) else found()
