"""Calibrate and tune a pipeline from Python, then use what came out.

    python examples/calibrate_and_tune.py

Writes calibration.safetensors and half.yaml. Steps and prompts are few, so that it ends in minutes.
"""

import torch
from diffusers import DiffusionPipeline

from fastcache_xdit import FastCacheConfig, calibrate, fastcache, tune
from fastcache_xdit.shipped import generation_defaults, model_path

MODEL = "shapes-pixart"  # a small model of this repository
PROMPTS = ["a red circle on a dark background", "a blue square on a light background", "a pink triangle"]

pipe = DiffusionPipeline.from_pretrained(model_path(MODEL))
pipe.set_progress_bar_config(disable=True)
settings = {**generation_defaults(MODEL), "num_inference_steps": 8}

# Any arguments of the pipeline: pictures to start from, masks, what a ControlNet looks at. Each call has its seed.
calls = [
    {"prompt": prompt, "generator": torch.Generator().manual_seed(seed), **settings}
    for seed, prompt in enumerate(PROMPTS)
]
found = calibrate(pipe, calls, output="calibration.safetensors", lead_blocks=[0])
print("guidance:", found.facts["guidance"])
tuned = tune(pipe, calls, calibration="calibration.safetensors", target="budget=0.5", evaluations=8, output="half.yaml")
for trial in tuned.trials:
    print(f"{trial.mask}: {trial.compute_ratio:.0%} of block FLOPs, {trial.psnr_db:.1f} dB")

with fastcache(pipe, FastCacheConfig.from_file("half.yaml")) as handle:
    pipe("a green circle on a dark background", generator=torch.Generator().manual_seed(9), **settings)
print(handle.report())
