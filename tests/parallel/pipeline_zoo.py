"""Every pipeline class of xDiT's own: a tiny pipeline of diffusers to wrap, what it is called with, and its layouts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch

from tests import tiny
from tests.models import zoo
from tests.models.loop import STEPS
from tests.parallel.pipeline_parts import built, call, flux_control, frames_vae, masks, text, unet

LAYOUTS = {
    "ulysses": {"ulysses_degree": 2},
    "ring": {"ring_degree": 2},
    "cfg": {"use_cfg_parallel": True},
    # in warm-up steps no key is older than in one process
    "pipefusion": {"pipefusion_parallel_degree": 2, "warmup_steps": STEPS},
    "tensor": {"tensor_parallel_degree": 2},
    "data": {"data_parallel_degree": 2},
}
SEQUENCE = ("ulysses", "ring")
NO_FLASH = "not tried: xDiT builds its linear attention for flash attention alone"
ONE_BRANCH = "{} runs no second guidance branch"


@dataclass(frozen=True)
class Made:
    """A pipeline of diffusers that xDiT has a class for.

    Attributes:
        layouts: those that xDiT has for it.
        build: makes it.
        call: what it is called with, beside the number of steps.
        why: by layout that it does not have, more than that xDiT has none.
        known: FastCache has an entry for its transformer, so that blocks are skipped on PipeFusion's stages too.
    """

    layouts: tuple[str, ...]
    build: Callable[[], Any]
    call: Callable[[], dict[str, Any]]
    why: Mapping[str, str] = field(default_factory=dict)
    known: bool = False


def plain(kind: str) -> Any:
    """Build a tiny pipeline of diffusers, of which one process runs all."""
    pipe = PIPELINES[kind].build()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def wrapper(kind: str) -> type:
    """Find xDiT's class for a pipeline class of diffusers."""
    from xfuser.model_executor.pipelines import base_pipeline, pipeline_flux_control

    name = "xFuserPipelineFluxControlPipeline" if kind == "FluxControlPipeline" else f"xFuser{kind}"
    assert pipeline_flux_control
    return next(each for each in _below(base_pipeline.xFuserPipelineBaseWrapper) if each.__name__ == name)


def _below(kind: type) -> list[type]:
    return [each for below in kind.__subclasses__() for each in (below, *_below(below))]


def generate(pipe: Any, kind: str) -> torch.Tensor | None:
    """Run one request and return its latents, None on ranks that xDiT leaves without."""
    output = pipe(**PIPELINES[kind].call(), num_inference_steps=STEPS)
    found = None if output is None else output[0]
    return found if isinstance(found, torch.Tensor) else None


def _family(family: str, layouts: tuple[str, ...], known: bool = True, **why: str) -> Made:
    arguments = lambda: {**tiny.call_arguments(family), "guidance_scale": 3.5}  # noqa: E731
    return Made(layouts, lambda: tiny.pipeline(family), arguments, why, known)


# fmt: off
_SOLVER = diffusers.DPMSolverMultistepScheduler(prediction_type="v_prediction")
_FLOW = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
_COG = diffusers.CogVideoXDDIMScheduler(prediction_type="v_prediction")
_FRAMES = 4 * zoo.FRAMES - 3
_ALL = (*SEQUENCE, "cfg", "pipefusion", "data")
PIPELINES = {
    "CogVideoXPipeline": Made(
        (*SEQUENCE, "cfg", "data"), built("CogVideoXPipeline", "CogVideoXTransformer3DModel", _COG),
        lambda: dict(**text(), num_frames=_FRAMES, **call(zoo.FRAMES, 4, 8, 8)),
    ),
    "ConsisIDPipeline": Made(
        (*SEQUENCE, "cfg", "data"),
        built(
            "ConsisIDPipeline", "ConsisIDTransformer3DModel", _COG, frames_vae,
            dict(num_attention_heads=2, attention_head_dim=24, in_channels=8),
        ),
        lambda: dict(
            **text(), num_frames=_FRAMES, image=zoo.normal(1, 3, 64, 64).sigmoid(), id_cond=zoo.normal(1, 8),
            id_vit_hidden=[zoo.normal(1, 3, 8)], generator=torch.Generator().manual_seed(3),
            **call(zoo.FRAMES, 4, 8, 8),
        ),
    ),
    "Flux2Pipeline": _family("flux2", (*SEQUENCE, "pipefusion", "data"), known=False, cfg=ONE_BRANCH.format("FLUX.2")),
    "FluxControlPipeline": Made(
        (*SEQUENCE, "pipefusion", "tensor", "data"), flux_control,
        lambda: {
            **tiny.call_arguments("flux"), "guidance_scale": 3.5, "control_image": zoo.normal(1, 3, 128, 128).sigmoid(),
            "generator": torch.Generator().manual_seed(3),
        },
        dict(cfg=ONE_BRANCH.format("FLUX.1")), known=True,
    ),
    "FluxPipeline": _family("flux", (*SEQUENCE, "pipefusion", "tensor", "data"), cfg=ONE_BRANCH.format("FLUX.1")),
    "HunyuanDiTPipeline": Made(
        _ALL, built("HunyuanDiTPipeline", "HunyuanDiT2DModel", _SOLVER),
        lambda: dict(
            **text(), **text("prompt_embeds_2", 3), **masks("prompt_attention_mask", "prompt_attention_mask_2"),
            **call(4, 8, 8, use_resolution_binning=False),
        ),
    ),
    "LattePipeline": Made(
        (*SEQUENCE, "data"), built("LattePipeline", "LatteTransformer3DModel", _SOLVER),
        lambda: dict(
            **text(), negative_prompt=None, video_length=zoo.FRAMES, clean_caption=False, mask_feature=False,
            **call(4, zoo.FRAMES, 8, 8),
        ),
    ),
    "PixArtAlphaPipeline": _family("pixart", _ALL),
    "PixArtSigmaPipeline": _family("pixart_sigma", _ALL),
    "SanaPipeline": Made(
        ("cfg", "pipefusion", "data"), built("SanaPipeline", "SanaTransformer2DModel", _FLOW),
        lambda: dict(
            **text(), **masks("prompt_attention_mask"), negative_prompt=None,
            **call(4, 8, 8, pixels=256, use_resolution_binning=False),
        ),
        dict.fromkeys(SEQUENCE, NO_FLASH),
    ),
    "SanaSprintPipeline": Made(
        ("data",),
        built(
            "SanaSprintPipeline", "SanaTransformer2DModel", diffusers.SCMScheduler(prediction_type="trigflow"), None,
            dict(guidance_embeds=True, guidance_embeds_scale=0.1, qk_norm="rms_norm_across_heads"),
        ),
        lambda: dict(
            prompt_embeds=text()["prompt_embeds"], prompt_attention_mask=torch.ones(1, zoo.WORDS),
            intermediate_timesteps=None, generator=torch.Generator().manual_seed(3),
            **call(4, 8, 8, pixels=256, use_resolution_binning=False),
        ),
        {**dict.fromkeys(SEQUENCE, NO_FLASH), "cfg": ONE_BRANCH.format("Sana-Sprint")},
    ),
    "StableDiffusion3Pipeline": _family("sd3", _ALL),
    "StableDiffusionXLPipeline": Made(
        ("cfg",), unet,
        lambda: dict(
            **text(), pooled_prompt_embeds=zoo.vector()[:1], negative_pooled_prompt_embeds=zoo.vector()[1:],
            **call(4, 8, 8),
        ),
    ),
}
# fmt: on
