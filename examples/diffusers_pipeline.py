"""The same picture without and with FastCache, from a plain diffusers pipeline.

    python examples/diffusers_pipeline.py

Writes uncached.png and cached.png. For a model of yours, load it from its folder or hub id instead.
"""

import time

import torch
from diffusers import DiffusionPipeline

from fastcache_xdit import FastCacheConfig, fastcache
from fastcache_xdit.shipped import generation_defaults, model_path

MODEL = "shapes-pixart"  # a small model of this repository
PROMPT = "a red circle left of a blue square on a dark background"

pipe = DiffusionPipeline.from_pretrained(model_path(MODEL))
arguments = generation_defaults(MODEL)  # steps, guidance and size


def generate(name: str) -> None:
    """Make the picture from the same noise each time."""
    start = time.perf_counter()
    image = pipe(PROMPT, generator=torch.Generator().manual_seed(1), **arguments).images[0]
    print(f"{name}: {time.perf_counter() - start:.1f} s")
    image.save(f"{name}.png")


generate("uncached")

# Compute half of the steps. With learn=0 a plan made for other models does; a service would rather learn from its first
# requests (4 by default), which are then computed in full.
config = FastCacheConfig(budget=0.5, learn=0)
with fastcache(pipe, config) as handle:  # leaving the block restores the pipeline
    generate("cached")
print(handle.report())
