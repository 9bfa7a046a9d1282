"""FastCache in a denoising loop of your own, around a bare transformer.

    python examples/own_loop.py

Writes own_loop.png.
"""

import torch
from diffusers import PixArtAlphaPipeline

from fastcache_xdit import fastcache
from fastcache_xdit.shipped import model_path

PROMPT, STEPS, GUIDANCE = "a green circle above a yellow triangle on a light background", 20, 2.5

pipe = PixArtAlphaPipeline.from_pretrained(model_path("shapes-pixart"))
transformer, scheduler = pipe.transformer, pipe.scheduler
texts = pipe.encode_prompt(PROMPT, max_sequence_length=32)
branches = {"cond": texts[:2], "uncond": texts[2:]}  # embeddings and mask of the prompt, and of the empty one

latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
scheduler.set_timesteps(STEPS)
noise_levels = (scheduler.timesteps / 1000).tolist()  # 1 to 0: the cache sees no scheduler here
with torch.no_grad(), fastcache(transformer, budget=0.5, sigmas=noise_levels) as handle:
    for timestep in scheduler.timesteps:
        velocity = {}
        for name, (text, mask) in branches.items():
            with handle.branch(name):  # guidance makes two calls of each step: name them, each has its own cache
                velocity[name] = transformer(
                    latents,
                    encoder_hidden_states=text,
                    encoder_attention_mask=mask,
                    timestep=timestep.expand(1),
                    added_cond_kwargs={"resolution": None, "aspect_ratio": None},
                ).sample
        guided = torch.lerp(velocity["uncond"], velocity["cond"], GUIDANCE)
        latents = scheduler.step(guided, timestep, latents).prev_sample
    pixels = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
pipe.image_processor.postprocess(pixels)[0].save("own_loop.png")
print(handle.report())
