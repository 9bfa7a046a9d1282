"""LoRA that is loaded, scaled, fused, unloaded and switched between requests: never what others have taught."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig

from fastcache_xdit import fastcache
from fastcache_xdit.errors import UsageError
from fastcache_xdit.home import Home
from tests import tiny

STEPS = 8
LORA = {"target_modules": ["to_q", "to_k"], "init_lora_weights": False}


def served(pipe, seed=0):
    return pipe(**tiny.call_arguments("flux", seed=seed), num_inference_steps=STEPS).images


def loaded(pipe, name="ink", rank=2):
    with tiny.seeded(rank):
        pipe.transformer.add_adapter(LoraConfig(r=rank, **LORA), name)


def scaled(pipe):
    pipe.transformer.set_adapters(["ink"], weights=[0.5])


def unloaded(pipe):
    pipe.transformer.delete_adapters(list(pipe.transformer.peft_config))


def fused(pipe):
    """Into the weights, and forgotten: nothing but these tells of it."""
    pipe.transformer.fuse_lora(lora_scale=1.0)
    pipe.transformer.unload_lora()


def switched(pipe):
    loaded(pipe, "oil", rank=4)
    pipe.transformer.set_adapters(["oil"])


CHANGES = {"scaled": scaled, "unloaded": unloaded, "fused": fused, "switched": switched}


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_is_learnt_is_of_the_adapters_of_its_requests(change, home):
    pipe = tiny.pipeline("flux")
    with fastcache(pipe, learn=1, home=home) as handle:
        served(pipe)
        plain = handle.learnt
        loaded(pipe)
        assert not handle.is_recording
        served(pipe)
        inked = handle.learnt
        assert plain is not inked and inked.identity["adapters"] == ["ink"] and len(home.listed()) == 2
        change(pipe)
        first = served(pipe, seed=1)
        back = change is unloaded
        assert (handle.learnt is plain) is back and handle.learnt is not inked
        skips = sum(entry.skip for entry in handle.report().ledger)
        assert skips == (STEPS // 2 if back else 0), "recorded in full"
    if not back:
        assert torch.equal(first, served(pipe, seed=1))


def test_an_adapter_that_comes_while_requests_are_recorded_begins_anew(home):
    pipe = tiny.pipeline("flux")
    with fastcache(pipe, learn=2, home=home) as handle:
        served(pipe)
        loaded(pipe)
        served(pipe, seed=1)
        assert handle.recorded == 1 and handle.is_recording
        served(pipe, seed=2)
    assert handle.learnt.identity["adapters"] == ["ink"]


def test_a_call_that_scales_its_adapter_is_planned_otherwise(home, caplog):
    pipe = tiny.pipeline("flux")
    loaded(pipe)
    with fastcache(pipe, learn=1, home=home) as handle:
        served(pipe)
        weak = {**tiny.call_arguments("flux"), "joint_attention_kwargs": {"scale": 0.5}}
        pipe(**weak, num_inference_steps=STEPS)
        assert "learnt with adapters at a scale of 1, not 0.5" in caplog.text
        assert not handle.is_recording


@pytest.mark.parametrize("change", [loaded, fused])
def test_a_calibration_is_refused_once_weights_are_others(change, home):
    pipe = tiny.pipeline("flux")
    with fastcache(pipe, learn=1, home=home) as handle:
        served(pipe)
    if change is fused:
        loaded(pipe)
        pipe.transformer.disable_adapters()
    with fastcache(pipe, calibration=handle.learnt):
        served(pipe)
        if change is fused:
            pipe.transformer.enable_adapters()
        change(pipe)
        with pytest.raises(UsageError, match="adapters is|made for other weights"):
            served(pipe)
