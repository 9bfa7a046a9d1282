"""A local edit that computes little more than the edited half of the picture.

    python examples/local_edit.py

Writes before.png and after.png.
"""

import torch
from diffusers import PixArtAlphaPipeline

from fastcache_xdit import FastCacheConfig, fastcache
from fastcache_xdit.shipped import generation_defaults, model_path

pipe = PixArtAlphaPipeline.from_pretrained(model_path("shapes-pixart"))
arguments = {**generation_defaults("shapes-pixart"), "output_type": "latent"}
noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
before = pipe("a red circle left of a blue square on a dark background", latents=noise, **arguments).images
mask = torch.zeros(16, 16)
mask[:, 8:] = 1  # the right half


def keep_the_rest(step: int, timestep: torch.Tensor, latents: torch.Tensor) -> None:
    """Put the first picture back outside the mask, as noisy as the next step expects it."""
    later = pipe.scheduler.timesteps[step + 1 : step + 2]
    kept = pipe.scheduler.add_noise(before, noise, later) if len(later) else before
    latents.copy_(torch.where(mask.bool(), latents, kept))


# Of 20 steps, compute the whole picture at four (1) and the tokens in the mask at the others (p); 0 would skip a step.
config = FastCacheConfig.scheduled("1pppp1pppp1pppp1pppp", tokens={"score": "region", "bucket": 1})
with fastcache(pipe, config) as handle:
    handle.focus(mask)
    prompt = "a red circle left of a green triangle on a dark background"
    after = pipe(prompt, callback=keep_the_rest, **arguments).images

for name, latents in (("before", before), ("after", after)):
    pixels = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample.detach()
    pipe.image_processor.postprocess(pixels)[0].save(f"{name}.png")
print(handle.report())
