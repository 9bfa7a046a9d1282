"""On an NVIDIA GPU: the promises of `test_plugin`, host reads that can be counted there, low precision, and NCCL."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from diffusers import PixArtAlphaPipeline

from fastcache_xdit import FastCacheConfig, fastcache
from fastcache_xdit.counters import Counters
from fastcache_xdit.decision.schedule import uniform_mask
from fastcache_xdit.errors import RankDivergenceError
from fastcache_xdit.parallel.arrival import arriving
from fastcache_xdit.parallel.topology import Topology
from shapes.loading import generation_defaults, model_path, tuned_configs
from shapes.sampling import prompts
from tests import tiny
from tests.parallel import place
from tests.parallel.cached import psnr
from tests.parallel.launch import free_port

DEVICE = os.environ.get(place.VARIABLE, "cuda")  # scripts/gpu.sh tries some of these on a CPU
pytestmark = pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

STEPS = 8
SKIPPING = FastCacheConfig(test="paper", error_budget=1.0)
WHOLE = FastCacheConfig(test="paper", error_budget=0)  # decides at each step, and skips none
MASKED = FastCacheConfig(
    test="none", schedule={STEPS: uniform_mask(STEPS, 3)}, warmup_steps=1, cooldown_steps=0, max_consecutive_skips=9
)
PLANNED = FastCacheConfig(learn=0)
AHEAD = FastCacheConfig(test="paper", error_budget=1.0, sync="ahead")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def pipeline(family, dtype):
    pipe = tiny.pipeline(family).to(DEVICE, dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe, family):
    dtype = pipe.transformer.dtype
    call = {
        name: value.to(DEVICE, dtype) if torch.is_tensor(value) else value
        for name, value in tiny.call_arguments(family).items()
    }
    images = pipe(**{**call, "num_inference_steps": STEPS})[0]
    return images if torch.is_tensor(images) else torch.as_tensor(images)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_budget_of_zero_and_disabled_are_bit_identical(family, dtype):
    pipe = pipeline(family, DTYPES[dtype])
    plain = generate(pipe, family)
    with fastcache(pipe, WHOLE):
        assert torch.equal(generate(pipe, family), plain)
    for config in (SKIPPING, MASKED):
        with fastcache(pipe, config) as handle:
            cached = generate(pipe, family)
            assert handle.report().counters.approximated.total() > 0 and not torch.equal(cached, plain)
            assert cached.isfinite().all()
    assert torch.equal(generate(pipe, family), plain)


def host_reads(pipe, family):
    """How often a request waits for the device inside the transformer."""
    forward, found = pipe.transformer.forward, []

    def watched(*args, **kwargs):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                return forward(*args, **kwargs)
            finally:
                torch.cuda.set_sync_debug_mode("default")
                found.append(sum("synchroniz" in str(each.message) for each in caught))

    pipe.transformer.forward = watched
    try:
        generate(pipe, family)
    finally:
        pipe.transformer.forward = forward
    return sum(found)


@pytest.mark.parametrize("family", ["pixart", "flux", "sd3"])
def test_a_decision_is_one_host_read_and_a_mask_none(family):
    pipe = pipeline(family, torch.bfloat16)
    generate(pipe, family)
    plain = host_reads(pipe, family)
    begun = plain + 1  # a request begins with its noise levels, which the scheduler keeps on the device
    with fastcache(pipe, WHOLE):
        generate(pipe, family)
        assert host_reads(pipe, family) <= begun + STEPS
    for config in (MASKED, PLANNED, AHEAD):
        with fastcache(pipe, config):
            generate(pipe, family)
            assert host_reads(pipe, family) <= begun


def test_what_was_measured_ahead_arrives_whole():
    sums = torch.rand(3, 4, dtype=torch.float64, device="cuda")
    expected = sums.cpu()
    arrived = arriving(sums)
    torch.rand(4096, 4096, device="cuda") @ torch.rand(4096, 4096, device="cuda")
    del sums
    torch.rand(3, 4, dtype=torch.float64, device="cuda")  # may take its memory, once nobody reads it
    assert torch.equal(arrived(), expected)


@pytest.mark.parametrize("family", ["flux", "sd3"])
@pytest.mark.parametrize("name", ["planned", "masked"])
def test_cuda_graphs_give_the_latents_of_the_plain_kernels(family, name):
    """Outputs of a graph are overwritten by its next replay, so nothing that is kept may be one of them."""
    config = {"planned": PLANNED, "masked": MASKED}[name]
    pipe = pipeline(family, torch.float32)
    with fastcache(pipe, config):
        plain = generate(pipe, family)
    pipe.transformer.compile(mode="reduce-overhead")
    with fastcache(pipe, config) as handle:
        for _ in range(3):  # warms up, records, replays
            found = generate(pipe, family)
        assert any(entry.skip for entry in handle.report().ledger)
    assert ((found - plain).norm() / plain.norm()).item() < 1e-2


@pytest.fixture(scope="module")
def shapes():
    def load(dtype):
        pipe = PixArtAlphaPipeline.from_pretrained(model_path("shapes-pixart"), torch_dtype=dtype)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return load


def latents(pipe, config=None):
    generators = [torch.Generator().manual_seed(index) for index in range(4)]
    call = {**generation_defaults("shapes-pixart"), "output_type": "latent"}
    if config is None:
        return pipe(prompts(4, 5), generator=generators, **call).images.float().cpu(), []
    with fastcache(pipe, config) as handle:
        images = pipe(prompts(4, 5), generator=generators, **call).images
    return images.float().cpu(), [entry.skip for entry in handle.report().ledger]


def test_decisions_are_those_of_the_cpu(shapes):
    pipe = shapes(torch.float32)
    config = FastCacheConfig(test="paper", error_budget=0.3)
    alone, chosen = latents(pipe, config)
    found, decided = latents(pipe.to("cuda"), config)
    assert decided == chosen and any(chosen)
    assert ((found - alone).norm() / alone.norm()).item() < 1e-2


@pytest.mark.parametrize("dtype, least", [("float32", 38.0), ("bfloat16", 30.0)])
def test_presets_serve_low_precision(shapes, dtype, least):
    pipe = shapes(DTYPES[dtype]).to("cuda")
    truth, _ = latents(pipe)
    for budget in (1 / 2, 1 / 2.5):
        cached, _ = latents(pipe, FastCacheConfig.from_file(tuned_configs("shapes-pixart")[budget]))
        assert psnr(cached, truth) > least


def test_compiled_blocks(shapes):
    pipe = shapes(torch.float32).to("cuda")
    config = FastCacheConfig.from_file(tuned_configs("shapes-pixart")[1 / 2])
    plain, _ = latents(pipe, config)
    for block in pipe.transformer.transformer_blocks:
        block.compile()
    compiled, _ = latents(pipe, config)
    assert ((compiled - plain).norm() / plain.norm()).item() < 1e-2


def test_offloaded_weights(shapes):
    pipe = shapes(torch.float32)
    truth, _ = latents(pipe.to("cuda"), SKIPPING)
    pipe = shapes(torch.float32)
    pipe.enable_model_cpu_offload()
    found, decided = latents(pipe, SKIPPING)
    assert any(decided) and ((found - truth).norm() / truth.norm()).item() < 1e-3


@pytest.fixture(scope="module")
def consensus():
    from fastcache_xdit.host.group import GroupConsensus

    address = f"tcp://127.0.0.1:{free_port()}"
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl", init_method=address, rank=0, world_size=1)
    yield GroupConsensus(Topology(), True, torch.device("cuda"), Counters())
    torch.distributed.destroy_process_group()


def test_nccl_hands_sums_back_in_every_bit(consensus):
    sums = torch.rand(3, 6, dtype=torch.float64, device="cuda") * 1e9
    assert torch.equal(consensus.agree(sums, stamp=2**52 + 1, place="here"), sums.cpu())
    consensus.confirm(2**52 + 1, "here")
    rows = torch.rand(2, 3, dtype=torch.bfloat16, device="cuda")
    assert torch.equal(consensus.exchange(rows)[0], rows)
    assert torch.equal(consensus.gather_shards(rows, 7, "here")[0], rows)
    assert consensus.counters.collectives == 4


def test_nccl_tells_of_divergence(consensus, monkeypatch):
    gather = consensus._everyone
    monkeypatch.setattr(consensus, "ranks", (0, 1))
    monkeypatch.setattr(consensus, "_everyone", lambda values: torch.cat([gather(values)[:1], gather(values)[:1] + 1]))
    with pytest.raises(RankDivergenceError, match=r"ranks \[0\] and ranks \[1\]"):
        consensus.confirm(5, "step 3")


def test_generate_from_the_command_line(tmp_path):
    command = ["-m", "fastcache_xdit", "generate", "--config", "configs/quickstart.yaml", "--ulysses_degree", "1"]
    done = subprocess.run(
        [sys.executable, *command, "--output", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "faster" in done.stdout.splitlines()[-1]
