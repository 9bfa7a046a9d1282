"""Image to image: a picture is drawn, then edited by another prompt, without and with FastCache.

    python examples/edit.py

Writes before.png, uncached.png and cached.png. Inpainting and editing pipelines are used in the same way. Where a mask
says what may change, examples/local_edit.py computes little more than that.
"""

import torch
from diffusers import FluxImg2ImgPipeline, FluxPipeline

from fastcache_xdit import fastcache
from fastcache_xdit.shipped import generation_defaults, model_path

MODEL = "shapes-flux"  # a small model of this repository
BEFORE, AFTER = "a red square on a dark background", "a yellow square on a dark background"

text_to_image = FluxPipeline.from_pretrained(model_path(MODEL))
arguments = generation_defaults(MODEL)
before = text_to_image(BEFORE, generator=torch.Generator().manual_seed(0), **arguments).images[0]
before.save("before.png")

pipe = FluxImg2ImgPipeline(**text_to_image.components)


def edit(name: str) -> None:
    """Go back to much noise, and come out at the other prompt."""
    noise = torch.Generator().manual_seed(1)
    pipe(AFTER, image=before, strength=0.9, generator=noise, **arguments).images[0].save(f"{name}.png")


edit("uncached")
with fastcache(pipe, budget=0.5, learn=0) as handle:  # enabled on the pipeline that is called
    edit("cached")
print(handle.report())
