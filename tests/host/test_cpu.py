"""xDiT without accelerator: every kind of parallelism on four gloo ranks against one process, and its own runner."""

from __future__ import annotations

import sys
import types

import numpy
import pytest
import torch

from fastcache_xdit.errors import UsageError
from fastcache_xdit.host import cpu
from tests import tiny
from tests.parallel.launch import only, run_ranks

CLOSE = 1e-6  # relative; other orders of summation in fp32 give about 1e-7
STALE = 1e-3  # asynchronous stages use keys and values that are one step old
STEPS = 6

ULYSSES = {"ulysses_degree": 2}
STAGES = {"pipefusion_parallel_degree": 2}
EXACT = {
    "u2": ULYSSES,
    "u4": {"ulysses_degree": 4},
    "ring2": {"ring_degree": 2},
    "u2 ring2": {**ULYSSES, "ring_degree": 2},
    "u2 pp2 synchronous": {**ULYSSES, **STAGES, "warmup_steps": STEPS},
}
GUIDED = {"cfg2 u2": {**ULYSSES, "use_cfg_parallel": True}}
DELAYED = {"pp2": STAGES, "pp4": {"pipefusion_parallel_degree": 4}, "u2 pp2": {**ULYSSES, **STAGES}}
LAYOUTS = {
    "pixart": {**EXACT, **GUIDED, **DELAYED},
    "flux": {**EXACT, **DELAYED},
    "sd3": {**EXACT, **GUIDED, "u2 pp2": DELAYED["u2 pp2"]},  # other pipelines of SD3 need a fix of xDiT
}
PAIRS = [(family, name) for family, layouts in LAYOUTS.items() for name in layouts]
RUNNERS = {"flux": ["--ulysses_degree", "2", "--pipefusion_parallel_degree", "2"], "sd3": ["--ulysses_degree", "4"]}
PROMPT = "a red fox"


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[dict]:
    cases = {f"{family} one": {"family": family} for family in LAYOUTS}
    cases |= {f"{family} {name}": {"family": family, "layout": LAYOUTS[family][name]} for family, name in PAIRS}
    for family, flags in RUNNERS.items():
        folder = str(tiny.checkpoint(family, tmp_path_factory.mktemp(family)))
        request = {"checkpoint": folder, "prompt": PROMPT, "steps": 3, "flags": flags}
        cases[f"{family} runner"] = {"family": family, "ask": "image", "request": request}
    cases["late"] = {"family": "pixart", "ask": "late", "layout": DELAYED["pp2"]}
    return run_ranks("layouts_worker.py", 4, cases=cases)


@pytest.mark.parametrize("family, name", PAIRS)
def test_layouts_agree_with_one_process(results, family, name):
    truth, latents = only(results, f"{family} one"), only(results, f"{family} {name}")
    error = ((latents - truth).norm() / truth.norm()).item()
    assert error < (STALE if name in DELAYED else CLOSE)


@pytest.mark.parametrize("family", LAYOUTS)
def test_one_process_of_xdit_is_diffusers(results, family):
    output = tiny.pipeline(family)(**tiny.call_arguments(family), num_inference_steps=STEPS, guidance_scale=3.5)
    torch.testing.assert_close(only(results, f"{family} one"), output.images)


@pytest.mark.parametrize("family", RUNNERS)
def test_xdits_runner_makes_the_image_of_diffusers(results, family):
    image = next(result[f"{family} runner"] for result in results if result.get(f"{family} runner") is not None)
    arguments = {"height": 128, "width": 128, "max_sequence_length": 32, "guidance_scale": 3.5}
    draw = torch.Generator().manual_seed(1)
    plain = tiny.pipeline(family, text=True)(PROMPT, num_inference_steps=3, generator=draw, **arguments).images[0]
    difference = numpy.abs(image.astype(float) - numpy.asarray(plain, dtype=float)).mean()
    assert image.shape == (128, 128, 3)
    assert difference < 3, "of 255; the runner computes in half precision"


def test_a_rank_that_is_done_waits_for_those_that_still_read_its_messages(results):
    assert torch.equal(only(results, "late"), only(results, "pixart pp2"))


def test_conversions_that_need_a_device_are_refused():
    config = types.SimpleNamespace(fully_shard_degree=2, use_fp8_gemms=True)
    loader = types.SimpleNamespace(model=types.SimpleNamespace(config=config))
    with pytest.raises(ValueError, match="use_fp8_gemms, fully_shard_degree cannot be used without accelerator"):
        cpu._leave_in_place(loader)


def test_preparing_twice_is_preparing_once(results):
    assert all(result["prepared"] == [True, True] for result in results)


def test_ring_attention_needs_another_backend_on_cpu_only(monkeypatch):
    monkeypatch.setattr(cpu, "has_accelerator", lambda: False)
    assert [cpu.attention_backend(degree) for degree in (1, 2)] == [None, "sdpa_flash"]
    monkeypatch.setattr(cpu, "has_accelerator", lambda: True)
    assert cpu.attention_backend(2) is None


def test_nothing_is_prepared_where_there_is_an_accelerator(monkeypatch):
    monkeypatch.setattr(cpu, "has_accelerator", lambda: True)
    monkeypatch.setattr(cpu, "_import_xfuser", lambda: pytest.fail("changed a machine that has an accelerator"))
    assert cpu.prepare() is False


def test_an_earlier_import_of_xfuser_is_refused(monkeypatch):
    monkeypatch.setattr(cpu, "has_accelerator", lambda: False)
    monkeypatch.setitem(cpu._state, "prepared", False)
    monkeypatch.setitem(sys.modules, "xfuser", types.ModuleType("xfuser"))
    with pytest.raises(UsageError, match=r"call register\(\) first"):
        cpu.prepare()


def test_the_clock_stands_for_device_events():
    start, end = cpu._Event(enable_timing=True), cpu._Event()
    start.record()
    end.record()
    end.synchronize()
    assert start.elapsed_time(end) >= 0


def test_attention_returns_the_logarithm_of_its_denominator():
    query, key, value = torch.randn(3, 1, 2, 5, 8, generator=torch.Generator().manual_seed(0))
    output, lse = cpu._attend(query, key, value, 0.0, False)
    scores = query @ key.transpose(-1, -2) / 8**0.5
    torch.testing.assert_close(lse, scores.logsumexp(-1))
    torch.testing.assert_close(output, scores.softmax(-1) @ value)


def test_attention_leaves_out_masked_keys():
    query, key, value = torch.randn(3, 1, 2, 5, 8, generator=torch.Generator().manual_seed(0))
    kept = torch.tensor([True, False, True, True, False])
    masked = cpu._attend(query, key, value, 0.0, False, {"attn_mask": kept[None, None, None]})
    cut = cpu._attend(query, key[:, :, kept], value[:, :, kept], 0.0, False)
    torch.testing.assert_close(masked[:2], cut[:2])


def test_attention_without_keys_is_nothing():
    query, none = torch.ones(1, 2, 5, 8), torch.ones(1, 2, 0, 8)
    output, lse = cpu._attend(query, none, none, 0.0, False)
    assert torch.equal(output, torch.zeros_like(query))
    assert torch.equal(lse, torch.full((1, 2, 5), -torch.inf))


def test_a_head_of_keys_serves_several_heads_of_queries():
    query, key, value = torch.randn(3, 1, 4, 5, 8, generator=torch.Generator().manual_seed(0))
    few = key[:, ::2], value[:, ::2]
    grouped = cpu._with_grouped_heads(cpu._attend)(query, *few, 0.0, False)
    repeated = cpu._attend(query, *(part.repeat_interleave(2, dim=1) for part in few), 0.0, False)
    assert all(torch.equal(*pair) for pair in zip(grouped[:2], repeated[:2], strict=True))
