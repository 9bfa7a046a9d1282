"""Make the file of what is known of any model: how the outputs of the shipped models move from step to step.

python -m shapes.pooled
"""

from __future__ import annotations

from functools import reduce

import torch
from diffusers import DiffusionPipeline

from fastcache_xdit import FastCacheConfig, fastcache
from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.approx.moments import Halves, Moments
from fastcache_xdit.approx.output import SEGMENT, STREAM
from fastcache_xdit.approx.pooled import FILE, write_pooled
from fastcache_xdit.learning.trajectory import Trajectory, moments_of
from fastcache_xdit.shipped import SHIPPED
from shapes.loading import calibration_prompts, generation_defaults, model_path

STEPS = 50
REQUESTS, PROMPTS = 6, 4


def main() -> None:
    """Record every shipped model and write the file."""
    write_pooled({name: record(name) for name in SHIPPED})
    print(f"-> {FILE} ({FILE.stat().st_size / 1e3:.0f} kB)")


@torch.no_grad()
def record(name: str) -> Moments:
    """Return the moments of a model's outputs over some requests, computed in full."""
    pipe = DiffusionPipeline.from_pretrained(model_path(name))
    pipe.set_progress_bar_config(disable=True)
    call = {**generation_defaults(name), "num_inference_steps": STEPS, "output_type": "latent"}
    prompts, moments = calibration_prompts(name), []
    config = FastCacheConfig(granularity="output", schedule={STEPS: "1" * STEPS})
    with fastcache(pipe, config, calibration=_nothing_known()) as handle:
        for request in range(REQUESTS):
            trajectory = Trajectory()
            generator = torch.Generator().manual_seed(request)
            with handle.watched(trajectory):
                pipe(prompts[request * PROMPTS :][:PROMPTS], generator=generator, **call)
            sigmas = [float(t) / pipe.scheduler.config.num_train_timesteps for t in pipe.scheduler.timesteps]
            moments.append(moments_of(trajectory.outputs(), sigmas))
    return reduce(Moments.plus, moments)


def _nothing_known() -> Calibration:
    sigmas = (1.0, 0.5)
    moments = Moments(sigmas, torch.eye(2 * len(sigmas) + 1, dtype=torch.float64)[None])
    return Calibration({}, {}, sigmas, {SEGMENT: {STREAM: Halves(moments, moments)}})


if __name__ == "__main__":
    main()
