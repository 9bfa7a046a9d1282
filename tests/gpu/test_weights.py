"""On an NVIDIA GPU: weights that are offloaded, rounded or adapted, and what the cache takes of its memory."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig

from fastcache_xdit import FastCacheConfig, fastcache
from fastcache_xdit.doctor.memory import Denoiser, RequestSize, held
from fastcache_xdit.home import Home
from tests import tiny

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

STEPS, PIXELS = 8, 512  # large enough that torch's blocks of 512 bytes do not show
BLOCKS = FastCacheConfig.scheduled("10" * (STEPS // 2), granularity="block", lead_blocks=0)
CONFIGS = {"output": FastCacheConfig(learn=0), "blocks": BLOCKS}


def grouped(pipe, **options):
    pipe.transformer.enable_group_offload(
        onload_device=torch.device("cuda"), offload_type="block_level", num_blocks_per_group=2, **options
    )
    pipe.vae.to("cuda")


OFFLOADS = {
    "model": lambda pipe: pipe.enable_model_cpu_offload(),
    "sequential": lambda pipe: pipe.enable_sequential_cpu_offload(),
    "group": grouped,
    "group with streams": lambda pipe: grouped(pipe, use_stream=True),
}


def served(pipe, dtype=torch.float32, pixels=128):
    call = tiny.call_arguments("sd3", pixels=pixels)
    call = {name: value.to("cuda", dtype) if torch.is_tensor(value) else value for name, value in call.items()}
    return pipe(**call, num_inference_steps=STEPS)[0]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("offload", OFFLOADS.values(), ids=OFFLOADS)
def test_offloaded_weights_give_the_same_and_cached_tensors_stay(offload, config):
    pipe = tiny.pipeline("sd3").to("cuda")
    with fastcache(pipe, config):
        expected = served(pipe)
    pipe = tiny.pipeline("sd3")
    offload(pipe)
    with fastcache(pipe, config) as handle:
        found = served(pipe)
        before = torch.cuda.memory_allocated()
        report = handle.report()
        assert any(entry.skip for entry in report.ledger)
    freed = before - torch.cuda.memory_allocated()
    assert freed == pytest.approx(report.bytes_held, rel=0.1), "what is held lies on the GPU"
    assert ((found - expected).norm() / expected.norm()).item() < 1e-4


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_doctor_says_what_a_request_takes(config, dtype, tmp_path):
    pipe = tiny.pipeline("sd3")
    pipe.save_pretrained(tmp_path)
    pipe.to("cuda", dtype)
    served(pipe, dtype, PIXELS)
    start = torch.cuda.memory_allocated()
    with fastcache(pipe, config):
        latents = served(pipe, dtype, PIXELS)
        taken = torch.cuda.memory_allocated() - start - latents.numel() * latents.element_size()
    said = held(Denoiser.saved(tmp_path), config, RequestSize(PIXELS, PIXELS, 1, STEPS, dtype, tiny.TOKENS)).cached
    assert taken == pytest.approx(said, rel=0.05)


ROUNDED = ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig", "Float8WeightOnlyConfig"]


@pytest.mark.parametrize("name", ROUNDED)
def test_rounded_weights(name, tmp_path):
    quantization = pytest.importorskip("torchao.quantization")
    pipe = tiny.pipeline("sd3").to("cuda", torch.bfloat16)
    quantization.quantize_(pipe.transformer, getattr(quantization, name)())
    whole = served(pipe, torch.bfloat16)
    for config in (*CONFIGS.values(), FastCacheConfig(learn=1)):
        with fastcache(pipe, config, home=Home(tmp_path)) as handle:
            served(pipe, torch.bfloat16)
            cached = served(pipe, torch.bfloat16)
            assert any(entry.skip for entry in handle.report().ledger) and cached.isfinite().all()
        assert torch.equal(served(pipe, torch.bfloat16), whole)


def test_an_adapter_is_learnt_by_itself(tmp_path):
    pipe = tiny.pipeline("sd3").to("cuda")
    with fastcache(pipe, learn=1, home=Home(tmp_path)) as handle:
        served(pipe)
        plain = handle.learnt
        pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), "ink")
        served(pipe)
        assert handle.learnt is not plain and handle.learnt.identity["adapters"] == ["ink"]
