"""What a doctor says that a cache will hold, beside what it does hold."""

from __future__ import annotations

import pytest
import torch

from fastcache_xdit import FastCacheConfig, fastcache
from fastcache_xdit.doctor.memory import Denoiser, RequestSize, examine, held
from fastcache_xdit.learning.trajectory import Trajectory
from fastcache_xdit.models.architectures import ARCHITECTURES
from tests import tiny

STEPS = 8
MASK = "10" * (STEPS // 2)
CONFIGS = {
    "output": FastCacheConfig(learn=0),
    "step": FastCacheConfig.scheduled(MASK),
    "block": FastCacheConfig.scheduled(MASK, granularity="block", lead_blocks=0, stand_in="taylor2"),
}
CONFIGS |= {
    f"{name}, rounded": FastCacheConfig(**CONFIGS[name].to_dict() | {"reference_dtype": "bfloat16"})
    for name in ("output", "step")
}
DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(scope="module", params=["pixart", "sd3", "flux", "wan"])
def family(request):
    return request.param


@pytest.fixture(scope="module")
def saved(family, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / family
    tiny.pipeline(family).save_pretrained(folder)
    return Denoiser.saved(folder)


def called(pipe, family, dtype, **more):
    call = {
        name: value.to(dtype) if torch.is_tensor(value) else value
        for name, value in tiny.call_arguments(family).items()
    }
    return pipe(**{**call, "num_inference_steps": STEPS, **more})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_what_the_report_says(family, saved, name, dtype):
    pipe = tiny.pipeline(family).to(dtype)
    with fastcache(pipe, CONFIGS[name]) as handle:
        called(pipe, family, dtype)
        said = handle.report().bytes_held
    frames = tiny.FRAMES if family == "wan" else 1
    request = RequestSize(tiny.PIXELS, tiny.PIXELS, frames, STEPS, dtype, tiny.TOKENS)
    assert held(saved, CONFIGS[name], request).cached == pytest.approx(said, rel=0.05)


def test_what_learning_takes_is_what_is_recorded(family, saved):
    pipe, watch = tiny.pipeline(family), Trajectory()
    with fastcache(pipe, learn=0) as handle, handle.watched(watch):
        called(pipe, family, torch.float32)
    recorded = sum(
        tensor.numel() * tensor.element_size() for tensor in (*watch.outputs(), watch.entered()[0], *watch.latents())
    )
    frames = tiny.FRAMES if family == "wan" else 1
    request = RequestSize(tiny.PIXELS, tiny.PIXELS, frames, STEPS, text=tiny.TOKENS)
    assert held(saved, FastCacheConfig(learn=3), request).learning == 3 * recorded
    assert held(saved, FastCacheConfig(learn=0), request).learning == 0


def test_published_models_are_known_without_their_weights():
    flux = Denoiser.published(ARCHITECTURES["flux.1-dev"])
    megabytes = held(flux, FastCacheConfig(), RequestSize(1024, 1024)).cached / 1e6
    assert 2.0 < megabytes < 2.3, "four outputs of half a megabyte, as docs/learning.md says, and moments"
    blocks = held(flux, FastCacheConfig.scheduled("1010"), RequestSize(1024, 1024)).cached
    tokens, text, width = 64 * 64, 512, 3072
    assert blocks == 2 * width * (3 * tokens + 2 * text), "two residuals of both streams and where the image entered"


def test_what_is_more_than_the_budget_is_a_hint():
    flux, request = Denoiser.published(ARCHITECTURES["flux.1-dev"]), RequestSize(1024, 1024)
    found = examine(flux, FastCacheConfig.scheduled("1010", memory_budget=1e7), request)
    assert found.state == "hint" and "more than memory_budget" in found.advice
    assert examine(flux, FastCacheConfig.scheduled("1010", memory_budget=1e9), request).state == "fine"
