"""Serving in a loop: one model, one cache that stays on, and requests one after the other.

    python examples/serving.py < prompts.txt

Each line that comes in is a prompt, such as `a red square on a dark background`. With `fast:` in front it asks for
fewer steps than usual. Writes 0000.png, 0001.png, ... The first requests are computed in full, to learn from;
what is learnt is kept for the next process.
"""

import contextlib
import sys
import time

import torch
from diffusers import DiffusionPipeline

from fastcache_xdit import enable
from fastcache_xdit.shipped import generation_defaults, model_path

MODEL = "shapes-flux"  # a small model of this repository

pipe = DiffusionPipeline.from_pretrained(model_path(MODEL))
pipe.set_progress_bar_config(disable=True)
arguments = generation_defaults(MODEL)
# After 2 requests (4 by default) it learns. Every hundredth is computed in full as well, to see that all is still well.
handle = enable(pipe, budget=0.5, learn=2, guard_every=100)

for number, line in enumerate(sys.stdin):
    draft, prompt = line.startswith("fast:"), line.removeprefix("fast:").strip()
    goal = handle.at(budget=0.3) if draft else contextlib.nullcontext()  # of this request alone; costs nothing
    start = time.perf_counter()
    with goal:
        image = pipe(prompt, generator=torch.Generator().manual_seed(0), **arguments).images[0]
    image.save(f"{number:04d}.png")
    print(f"{number:04d}.png in {time.perf_counter() - start:.1f} s: {prompt}", flush=True)

print(handle.report())
handle.disable()  # the pipeline is what it was
