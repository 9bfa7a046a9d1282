"""What the property tests draw: shapes, dtypes and contents of tokens, scores with ties and broken numbers."""

from __future__ import annotations

import torch
from hypothesis import settings
from hypothesis import strategies as st

PROPERTY = settings(deadline=None, derandomize=True, max_examples=40)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
BROKEN = (torch.nan, torch.inf, -torch.inf)


def random(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seeds():
    return st.integers(0, 2**32)


@st.composite
def tokens(draw, max_tokens=40, broken=False):
    """[B, N, D] of any dtype: random, with many equal tokens, all the same, all zero, or with NaN and infinity."""
    shape = draw(st.integers(1, 3)), draw(st.integers(1, max_tokens)), draw(st.integers(1, 5))
    x = random(draw(seeds()), *shape)
    kind = draw(st.sampled_from(["random", "ties", "constant", "zero", "large"]))
    x = {"ties": x.round(), "constant": torch.ones_like(x), "zero": x * 0, "large": x * 1e4}.get(kind, x)
    if broken:
        place = draw(st.integers(0, x[..., 0].numel() - 1))
        x.view(-1, shape[2])[place, 0] = draw(st.sampled_from(BROKEN))
    return x.to(draw(DTYPES))


@st.composite
def scores(draw, rows=None, total=None):
    """[B, N] float32 from few values, so that ties are common; some infinite."""
    shape = rows or draw(st.integers(1, 3)), total or draw(st.integers(1, 30))
    values = torch.tensor([0.0, 0.5, 1.0, 2.0, 7.0, torch.inf])
    generator = torch.Generator().manual_seed(draw(seeds()))
    return values[torch.randint(draw(st.integers(1, len(values))), shape, generator=generator)]


@st.composite
def merge_options(draw):
    """(ratio, window, neighbours, temporal_weight) of `merging`."""
    ratio = draw(st.floats(0.01, 0.99))
    return ratio, draw(st.integers(1, 50)), draw(st.integers(1, 8)), draw(st.sampled_from([0.0, 1.0, 5.0]))
