"""A transformer of your own in a loop of your own: nothing to register, and no names to follow.

python examples/own_model.py
"""

import torch
from torch import nn

from fastcache_xdit import FastCacheConfig, fastcache


class Ripple(nn.Module):
    """A block with two streams."""

    def __init__(self, width):
        super().__init__()
        self.look = nn.MultiheadAttention(width, 4, batch_first=True)
        self.think = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, stones, surface, beat):  # noqa: D102
        both = torch.cat([stones, surface + beat], dim=1)
        both = both + self.think(both + self.look(both, both, both)[0])
        return both.split([stones.shape[1], surface.shape[1]], dim=1)


class Pond(nn.Module):
    """The transformer: latents, a text and the noise level go in, a velocity comes out."""

    def __init__(self, width=64, depth=8):
        super().__init__()
        self.clock, self.ripples = nn.Linear(1, width), nn.ModuleList(Ripple(width) for _ in range(depth))

    def forward(self, water, pebbles, moment):  # noqa: D102
        for ripple in self.ripples:
            pebbles, water = ripple(pebbles, water, beat=self.clock(moment))
        return water


def sample(model, text, sigmas):
    """Integrate from noise; with guidance, make each of the two calls inside `with handle.branch(NAME):`."""
    latents = torch.randn(1, 32, 64, generator=torch.Generator().manual_seed(1))
    for sigma in sigmas:
        latents = latents - model(latents, text, torch.full((1, 1, 1), sigma)) / len(sigmas)
    return latents


torch.manual_seed(0)
pond, text, sigmas = Pond().eval(), torch.randn(1, 6, 64), [1 - step / 20 for step in range(20)]
with torch.no_grad():
    whole = sample(pond, text, sigmas)
    with fastcache(pond, FastCacheConfig.scheduled("11101010" * 2 + "1010"), sigmas=sigmas) as handle:
        cached = sample(pond, text, sigmas)
print(handle.report())
print(f"relative error {(cached - whole).norm() / whole.norm():.1e}")
