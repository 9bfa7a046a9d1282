"""References kept in another dtype than the model's: their size, and what comes out."""

from __future__ import annotations

import pytest
import torch

from fastcache_xdit import FastCacheConfig, fastcache
from tests import tiny

STEPS = 8
MASK = "10" * (STEPS // 2)
CONFIGS = {
    "output": {"learn": 0},
    "step": {"schedule": {STEPS: MASK}},
    "block": {"schedule": {STEPS: MASK}, "granularity": "block", "stand_in": "taylor2"},
    "tokens": {"schedule": {STEPS: MASK[:-1] + "p"}, "tokens": {"keep_ratio": 0.5}},
}


def served(pipe, family, dtype, **options):
    """Latents of a request, and the report."""
    call = tiny.call_arguments(family)
    call = {name: value.to(dtype) if torch.is_tensor(value) else value for name, value in call.items()}
    with fastcache(pipe, FastCacheConfig(**options)) as handle:
        latents = torch.as_tensor(pipe(**call, num_inference_steps=STEPS)[0])
        return latents, handle.report()


@pytest.fixture(scope="module", params=["pixart", "flux"])
def family(request):
    return request.param


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_they_are_the_models_unless_asked_for(family, name, dtype):
    pipe, options = tiny.pipeline(family).to(dtype), CONFIGS[name]
    own = {torch.float32: "float32", torch.bfloat16: "bfloat16"}[dtype]
    expected, report = served(pipe, family, dtype, **options)
    same, told = served(pipe, family, dtype, **options, reference_dtype=own)
    assert torch.equal(same, expected) and told.bytes_held == report.bytes_held


@pytest.mark.parametrize("name", CONFIGS)
def test_bfloat16_takes_half_of_float32_and_gives_nearly_the_same(family, name):
    pipe, options = tiny.pipeline(family), CONFIGS[name]
    expected, whole = served(pipe, family, torch.float32, **options)
    latents, half = served(pipe, family, torch.float32, **options, reference_dtype="bfloat16")
    assert latents.dtype == expected.dtype and not torch.equal(latents, expected)
    assert torch.linalg.norm(latents - expected) < 0.02 * torch.linalg.norm(expected)
    if name in ("step", "block"):  # beside which nothing is kept
        assert half.bytes_held * 2 == whole.bytes_held
    else:
        assert half.bytes_held < whole.bytes_held


@pytest.mark.parametrize("name", CONFIGS)
def test_float32_keeps_a_rounded_model_in_its_dtype(family, name):
    pipe, options = tiny.pipeline(family).to(torch.bfloat16), CONFIGS[name]
    _, half = served(pipe, family, torch.bfloat16, **options)
    latents, whole = served(pipe, family, torch.bfloat16, **options, reference_dtype="float32")
    assert latents.dtype == torch.bfloat16 and latents.isfinite().all() and whole.bytes_held > half.bytes_held


def test_a_budget_of_memory_counts_them(family):
    pipe, options = tiny.pipeline(family), CONFIGS["step"]
    _, whole = served(pipe, family, torch.float32, **options)
    for reference_dtype, fits in (("float32", False), ("bfloat16", True)):
        budget = {"memory_budget": 0.6 * whole.bytes_held, "reference_dtype": reference_dtype}
        with fastcache(pipe, FastCacheConfig(**options, **budget)) as handle:
            for _ in range(2):
                pipe(**tiny.call_arguments(family), num_inference_steps=STEPS)
            skipped = {entry.segment for entry in handle.report().ledger if entry.skip}
        assert (skipped == {"output"}) is not fits
