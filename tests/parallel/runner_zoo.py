"""The transformer of every model of xDiT's runner: its wrapper, the tiny model it is built from, and what works."""

from __future__ import annotations

import functools
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
from tests.parallel.answers import faults_of
from tests.parallel.launch import run_ranks

LAYOUTS = {
    "ulysses": {"ulysses_degree": 2},
    "ring": {"ring_degree": 2},
    "cfg": {"use_cfg_parallel": True},
    "data": {"data_parallel_degree": 2},
}
WORDS = {"ulysses": "Ulysses", "ring": "ring attention", "cfg": "CFG parallelism", "data": "data parallelism"}

_TRANSFORMERS = "xfuser.model_executor.models.transformers"
_SCALE = 8  # pixels of a latent


@dataclass(frozen=True)
class Runner:
    """A model of xDiT's runner.

    Attributes:
        name: what the runner calls it.
        wrapper: module and name of the transformer's wrapper, or of a function that returns it.
        config: changes of the tiny model: heads that divide, and what xDiT takes for granted.
        told: the runner or its pipeline tells xDiT of each request beforehand.
        cut: its pipeline hands each rank a part of the image and of the text.
        lacks: layouts that the runner does not have for it.
        untried: layouts in which its pipeline divides the work, and not its transformer.
    """

    name: str
    wrapper: str
    config: dict[str, Any] = field(default_factory=dict)
    told: bool = False
    cut: bool = False
    lacks: tuple[str, ...] = ("cfg",)
    untried: tuple[str, ...] = ()


# fmt: off
RUNNERS = {
    "Cosmos3OmniTransformer": Runner(
        "Cosmos3-Nano", "cosmos3.get_cosmos3_transformer_wrapper_class",
        dict(num_attention_heads=4, num_key_value_heads=2), lacks=(), untried=("cfg",),
    ),
    "Flux2Transformer2DModel": Runner("FLUX.2-dev", "flux2.xFuserFlux2Transformer2DWrapper"),
    "FluxTransformer2DModel": Runner("FLUX.1-dev", "flux.xFuserFlux1Transformer2DWrapper", told=True),
    "HunyuanVideo15Transformer3DModel": Runner(
        "Hunyuanvideo-1.5", "hunyuan_video15.xFuserHunyuanVideo15Transformer3DWrapper",
    ),
    "HunyuanVideoTransformer3DModel": Runner("HunyuanVideo", "hunyuan_video.xFuserHunyuanVideoTransformer3DWrapper"),
    "Ideogram4Transformer2DModel": Runner(
        "Ideogram-4", "ideogram4.get_ideogram4_transformer_wrapper_class", lacks=(), untried=("cfg",),
    ),
    "Krea2Transformer2DModel": Runner("Krea-2-Raw", "krea2.xFuserKrea2Transformer2DWrapper", lacks=("ring", "cfg")),
    "LTX2VideoTransformer3DModel": Runner("LTX-2", "ltx2.xFuserLTX2VideoTransformer3DWrapper", dict(rope_type="split")),
    "Lumina2Transformer2DModel": Runner(
        "Lumina2", "lumina2.xFuserLumina2Transformer2DWrapper", dict(num_kv_heads=2), lacks=("ring",), untried=("cfg",),
    ),
    "MiniMaxH3Transformer3DModel": Runner(
        "MiniMax-H3", "minimax_h3.xFuserMiniMaxH3Transformer3DWrapper", lacks=("ring", "cfg", "data"),
    ),
    "QwenImageTransformer2DModel": Runner("Qwen-Image", "qwen.xFuserQwenImageTransformerWrapper"),
    # without the second attention of SD3.5 medium, at which xDiT stops: joint_strategy is not set there
    "SD3Transformer2DModel": Runner(
        "SD3.5", "sd3.xFuserSD3Transformer2DWrapper", dict(dual_attention_layers=()), told=True, cut=True, lacks=(),
        untried=("cfg",),
    ),
    "WanTransformer3DModel": Runner("Wan2.1-T2V", "wan.xFuserWanTransformer3DWrapper"),
    "WanVACETransformer3DModel": Runner("Wan2.1-VACE-1.3B", "wan_vace.xFuserWanVACETransformer3DWrapper"),
    "ZImageTransformer2DModel": Runner("Z-Image", "z_image.xFuserZImageTransformer2DWrapper", lacks=()),
}

# fmt: on
# The reason by class, or by class and layout; test_runner_models.py checks that each is still true.
REFUSED = {
    **{
        f"{name}, {layout}": f"xDiT's runner has no {WORDS[layout]} for {runner.name}"
        for name, runner in RUNNERS.items()
        for layout in runner.lacks
    },
    "xFuserCausalWanTransformer3DWrapper": "xDiT's runner has neither Ulysses nor ring attention for CausalWan",
    "xFuserLingBotVideoTransformer3DWrapper": "needs the package lingbot_video, which xDiT does not install",
}
CURED = {"Cosmos3OmniTransformer": "cosmos3-shared-text", "MiniMaxH3Transformer3DModel": "padded-keys"}
PLACES = [
    (name, layout)
    for name, runner in RUNNERS.items()
    for layout in LAYOUTS
    if layout not in (*runner.lacks, *runner.untried)
]


@functools.cache
def results() -> tuple[dict[str, Any], ...]:
    """Run every model in every layout, once in this process; return what `runner_worker.main` did, by rank."""
    return tuple(run_ranks("runner_worker.py", 2))


def passed() -> dict[str, list[str]]:
    """Run every model in every layout; return by class name those in which the cache is as good as in one process."""
    return {name: [layout for at, layout in PLACES if at == name and not faults(name, layout)] for name in RUNNERS}


def faults(name: str, layout: str) -> list[str]:
    """List what is wrong with a model in a layout."""
    answers = (result["answers"][name][layout] for result in results())
    return [fault for answer in answers for fault in ([answer] if isinstance(answer, str) else faults_of(answer))]


def plain(name: str) -> nn.Module:
    """The tiny model in one process."""
    return zoo.build(name, RUNNERS[name].config)


def wrapped(name: str, config: Any) -> nn.Module:
    """The same model as the runner builds it, laid out by xDiT's engine config."""
    from xfuser.core.distributed import initialize_runtime_state
    from xfuser.model_executor.base_wrapper import xFuserBaseWrapper

    wrapper, model = _wrapper(name), plain(name)
    around = issubclass(wrapper, xFuserBaseWrapper)
    model = model if around else _loaded(wrapper, model).eval()
    initialize_runtime_state(SimpleNamespace(transformer=model, vae_scale_factor=_SCALE), config)
    if hasattr(model, "_init_sp_state"):
        model._init_sp_state()
    if RUNNERS[name].told:
        _tell()
    return wrapper(model) if around else model


def forward_of(name: str, model: nn.Module) -> Any:
    """What calls the wrapped model as its pipeline does."""
    return functools.partial(_in_parts, model) if RUNNERS[name].cut else model


def _in_parts(model: nn.Module, hidden_states, encoder_hidden_states, **arguments: Any) -> tuple[torch.Tensor]:
    from xfuser.core.distributed import get_sequence_parallel_rank, get_sequence_parallel_world_size, get_sp_group

    rank, size = get_sequence_parallel_rank(), get_sequence_parallel_world_size()
    image, text = hidden_states.chunk(size, dim=-2)[rank], encoder_hidden_states.chunk(size, dim=-2)[rank]
    output = model(hidden_states=image, encoder_hidden_states=text, return_dict=False, **arguments)[0][0]
    return (get_sp_group().all_gather(output.contiguous(), dim=-2),)


def _tell() -> None:
    from xfuser.core.distributed import get_runtime_state

    side = _SCALE * zoo.SIDE
    request = dict(batch_size=zoo.BATCH, num_inference_steps=STEPS, max_condition_sequence_length=zoo.WORDS)
    get_runtime_state().set_input_parameters(height=side, width=side, **request)


def _loaded(wrapper: type, model: nn.Module) -> nn.Module:
    """Load the model as the runner does; that drops the config of a wrapper whose constructor names nothing."""
    parameters = list(inspect.signature(wrapper).parameters.values())
    if all(parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) for parameter in parameters):
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
