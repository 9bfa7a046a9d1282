"""Guidance that is on for a part of a request only: calls stay in their steps, and nothing is taken over the switch."""

from __future__ import annotations

import pytest
import torch
from diffusers.callbacks import SD3CFGCutoffCallback

from fastcache_xdit import FastCacheConfig, fastcache
from tests import tiny

STEPS, AWAY = 12, range(4, 9)
HALF = FastCacheConfig.scheduled("10" * (STEPS // 2)).to_dict()


def interval(pipe, step, timestep, changed):
    """Leave the branch without prompt away in some steps."""
    pipe._guidance_scale = 1.0 if step + 1 in AWAY else 5.0
    return changed


def cut(pipe, step, timestep, changed):
    return SD3CFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=4)(pipe, step, timestep, changed)


INPUTS = ["prompt_embeds", "pooled_prompt_embeds"]
SWITCHED = {
    "wan": {"callback_on_step_end": interval},
    "sd3": {"callback_on_step_end": cut, "callback_on_step_end_tensor_inputs": INPUTS},
}
CONFIGS = {
    "plan": {"learn": 0},
    "plan, checked": {"learn": 0, "check": 0.3},
    "half": HALF,
    "paper": {"test": "paper"},
    "groups": {"test": "paper", "granularity": "group"},
}


@pytest.fixture(scope="module", params=SWITCHED)
def made(request):
    pipe = tiny.pipeline(request.param)
    return request.param, pipe, latents(request.param, pipe)


def latents(family, pipe):
    arguments = {**tiny.call_arguments(family), **SWITCHED[family], "num_inference_steps": STEPS}
    return torch.as_tensor(pipe(**arguments)[0])


@pytest.mark.parametrize("name", CONFIGS)
def test_calls_stay_in_their_steps_and_a_branch_begins_anew(made, name):
    family, pipe, plain = made
    with fastcache(pipe, FastCacheConfig.from_dict(CONFIGS[name])) as handle:
        changed = latents(family, pipe)
        report = handle.report()
    assert report.counters.bypassed_calls == 0 and report.counters.approximated.total() > 0
    assert (changed - plain).norm() < 0.05 * plain.norm()
    first = {entry.step: entry for entry in reversed(report.ledger) if entry.branch != "cond"}
    if family == "wan":
        assert not first.keys() & set(AWAY) and not first[AWAY.stop].skip
        assert sorted(first) == [step for step in range(STEPS) if step not in AWAY]
    elif name.startswith("plan"):
        switched = 4 + 1
        assert not first[switched].skip, "of another batch size, it is computed"
