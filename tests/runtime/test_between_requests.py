"""What changes while the cache is on: adapters that are loaded, and a scheduler that is replaced."""

from __future__ import annotations

import diffusers
import pytest
import torch
from peft import LoraConfig

from fastcache_xdit import FastCacheConfig, fastcache
from fastcache_xdit.errors import UsageError
from fastcache_xdit.home import Home
from fastcache_xdit.shipped import generation_defaults, model_path, presets
from tests import tiny

STEPS = 8
LORA = LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False)


def latents(pipe, family="flux"):
    return pipe(**tiny.call_arguments(family), num_inference_steps=STEPS).images


def test_what_was_made_without_an_adapter_is_refused_with_it_in_every_request(tmp_path):
    pipe = tiny.pipeline("flux")
    with fastcache(pipe, learn=1, home=Home(tmp_path)) as handle:
        latents(pipe)
    learnt = handle.learnt
    with fastcache(pipe, calibration=learnt):
        latents(pipe)
        pipe.transformer.add_adapter(LORA)
        for _ in range(2):
            with pytest.raises(UsageError, match=r"adapters is \['default'\] here, and \[\] in the calibration"):
                latents(pipe)
        pipe.transformer.delete_adapters("default")
        latents(pipe)
    with fastcache(pipe, calibration=learnt, allow_adapters=True):
        pipe.transformer.add_adapter(LORA)
        latents(pipe)


def test_a_tuned_preset_is_refused_too():
    pipe = diffusers.DiffusionPipeline.from_pretrained(str(model_path("shapes-flux")))
    pipe.set_progress_bar_config(disable=True)
    call = generation_defaults("shapes-flux") | {"prompt": "a red circle on a dark background", "output_type": "pt"}
    with fastcache(pipe, FastCacheConfig.from_file(presets("shapes-flux")["half"])):
        pipe.transformer.add_adapter(LORA)
        with pytest.raises(UsageError, match="adapters is"):
            pipe(**call)


def test_a_scheduler_that_is_replaced_is_told_and_nothing_is_wrong():
    pipe = tiny.pipeline("pixart")
    with fastcache(pipe, learn=0) as handle:
        latents(pipe, "pixart")
        pipe.scheduler = diffusers.EulerDiscreteScheduler(prediction_type="v_prediction")
        changed = latents(pipe, "pixart")
        assert any(
            "pipe.scheduler was replaced" in line or "enable it anew" in line for line in handle.report().remarks
        )
        assert handle.report().counters.bypassed_calls == STEPS
    assert torch.equal(changed, latents(pipe, "pixart"))
