"""Pipelines that edit, on the small trained models: nothing goes wrong, and they lose no more than text to image."""

from __future__ import annotations

import functools

import diffusers
import torch

from fastcache_xdit import fastcache
from fastcache_xdit.approx.pooled import pooled
from fastcache_xdit.evaluate.quality import psnr_db
from fastcache_xdit.shipped import generation_defaults, held_out_prompts, model_path

COUNT = 2
MANY = 8  # where pictures lose very differently: 22 to 62 dB
STRENGTH = 0.8
LOSS = 3.0  # dB that an editing pipeline may be behind text to image


class Made:
    """Pipelines of one small model, and what they generate."""

    def __init__(self, name: str, kind: str, count: int = COUNT) -> None:
        self.name = name
        self.pipe = getattr(diffusers, kind).from_pretrained(model_path(name))
        self.call = {**generation_defaults(name), "prompt": held_out_prompts(name, count, 42)}
        self.pictures = generate(self.pipe, **self.call)

    def other(self, kind: str):
        made = getattr(diffusers, kind)
        names = made.__init__.__code__.co_varnames
        pipe = made(**{name: part for name, part in self.pipe.components.items() if name in names})
        for scale in ("vae_scale_factor_spatial", "vae_scale_factor_temporal"):
            if hasattr(self.pipe, scale):
                setattr(pipe, scale, getattr(self.pipe, scale))
        return pipe

    def likeness(self, pipe, **call) -> tuple[float, float]:
        """The PSNR in dB of cached pictures, and the share of steps that were computed."""
        whole = generate(pipe, **call)
        with fastcache(pipe, budget=1, learn=0):
            assert torch.equal(generate(pipe, **call), whole)
        with fastcache(pipe, budget=0.5, learn=0, calibration=pooled(self.name)) as handle:
            cached = generate(pipe, **call)
        psnr = psnr_db(_in_8_bits(cached), _in_8_bits(whole))
        return sum(psnr) / len(psnr), handle.report().counters.compute_ratio()


def generate(pipe, **call) -> torch.Tensor:
    """Pictures [N, 3, H, W], the frames of a clip side by side."""
    pipe.set_progress_bar_config(disable=True)
    made = pipe(**call, output_type="pt", generator=torch.Generator().manual_seed(7))[0]
    pictures = made if isinstance(made, torch.Tensor) else torch.stack(list(made))
    return pictures if pictures.ndim == 4 else pictures.transpose(1, 2).flatten(3, 4).flatten(2, 3)[:, :, None]


def _in_8_bits(pictures: torch.Tensor) -> torch.Tensor:
    return (pictures.float().clamp(0, 1) * 255).round() / 255


@functools.cache
def flux(count: int = COUNT) -> Made:
    return Made("shapes-flux", "FluxPipeline", count)


@functools.cache
def wan() -> Made:
    return Made("shapes-video", "WanPipeline", count=1)


@functools.cache
def text_to_image(name: str, **changes: float) -> float:
    made = flux() if name == "flux" else wan()
    return made.likeness(made.pipe, **{**made.call, **changes})[0]


def _edit(count: int = COUNT, **changes):
    made = flux(count)
    return made, {**made.call, "prompt": held_out_prompts(made.name, count, 77), "image": made.pictures, **changes}


def test_image_to_image():
    made, call = _edit(strength=STRENGTH)
    psnr, ratio = made.likeness(made.other("FluxImg2ImgPipeline"), **call)
    assert ratio == 0.5 and psnr > text_to_image("flux") - LOSS


def test_inpainting():
    mask = torch.zeros(COUNT, 1, *flux().pictures.shape[-2:])
    mask[..., :32] = 1
    made, call = _edit(strength=STRENGTH, mask_image=mask)
    psnr, ratio = made.likeness(made.other("FluxInpaintPipeline"), **call)
    assert ratio == 0.5 and psnr > text_to_image("flux") - LOSS


def test_editing_with_two_unnamed_calls_in_each_step():
    guided = {"negative_prompt": held_out_prompts("shapes-flux", MANY, 99), "true_cfg_scale": 2.0}
    made, call = _edit(MANY, **guided, _auto_resize=False, max_area=128 * 128)
    plain, _ = made.likeness(made.pipe, **made.call, **guided)
    psnr, ratio = made.likeness(made.other("FluxKontextPipeline"), **call)
    assert ratio == 0.5 and psnr > plain - LOSS


def test_video_to_video():
    made = wan()
    texts, negative = made.pipe.encode_prompt(
        held_out_prompts(made.name, 1, 77), "", True, max_sequence_length=made.call["max_sequence_length"]
    )
    frames = generate(made.pipe, **made.call)
    size = made.call["height"], made.call["width"]
    clip = [*frames.reshape(3, made.call["num_frames"], *size).transpose(0, 1)]
    call = {name: made.call[name] for name in ("guidance_scale", "num_inference_steps", "height", "width")}
    call |= {"prompt_embeds": texts, "negative_prompt_embeds": negative, "video": clip, "strength": STRENGTH}
    psnr, ratio = made.likeness(made.other("WanVideoToVideoPipeline"), **call)
    assert ratio == 0.5 and psnr > text_to_image("wan") - LOSS
