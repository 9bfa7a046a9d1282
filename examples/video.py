"""The same clip without and with FastCache.

    python examples/video.py

Writes uncached.mp4 and cached.mp4. Wan 2.1 is loaded and called in the same way.
"""

import torch
from diffusers import DiffusionPipeline

from fastcache_xdit import fastcache
from fastcache_xdit.clips import Clip, pictured
from fastcache_xdit.shipped import generation_defaults, model_path

MODEL = "shapes-video"  # a small model of this repository
PROMPT = "a blue circle moving left on a dark background"

pipe = DiffusionPipeline.from_pretrained(model_path(MODEL))
arguments = {**generation_defaults(MODEL), "output_type": "pt"}


def generate(name: str) -> Clip:
    """Make the clip from the same noise each time."""
    frames = pipe(PROMPT, generator=torch.Generator().manual_seed(0), **arguments).frames[0]  # [F, 3, H, W] in 0..1
    clip = pictured(frames, fps=8)
    with open(f"{name}.mp4", "wb") as file:
        file.write(clip.mp4())
    return clip


generate("uncached")
with fastcache(pipe, budget=0.5, learn=0) as handle:  # a plan made for other models; learn=4 makes one of your requests
    generate("cached")
print(handle.report())
