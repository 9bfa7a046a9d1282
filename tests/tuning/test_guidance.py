"""How guidance combines branches is found in every formula and order, on diffusers' own pipelines and in loops."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import diffusers
import pytest
import torch

from fastcache_xdit import FastCacheConfig, fastcache
from fastcache_xdit.host import guidance
from fastcache_xdit.host.guidance import Guidance, Part
from fastcache_xdit.runtime.observer import Observer
from tests import tiny

STEPS, SCALE = 4, 3.5
FIRST, SECOND = (Part("fused", half=half) for half in (0, 1))
COND, UNCOND = Part("cond"), Part("uncond")


class Watching(Observer):
    """Has a cache watch guidance."""

    def __init__(self, target) -> None:
        self.guidance = Guidance(target.transformer, target.scheduler)

    def attach(self, watched, undo) -> None:
        self.guidance.attach(watched.clock, undo)


@contextlib.contextmanager
def watched(target):
    """Yield the combinations by step, empty until the block ends, and the handle; nothing is skipped."""
    watching, found = Watching(target), {}
    with fastcache(target, FastCacheConfig.scheduled("1" * STEPS), observer=watching) as handle:
        yield found, handle
    found |= watching.guidance.combinations()


def of_pipeline(family: str, batch: int = 1, **call):
    """Combinations of one call of a tiny pipeline."""
    pipe = tiny.pipeline(family)
    arguments = tiny.call_arguments(family, batch=batch) | {"num_inference_steps": STEPS, **call}
    with watched(pipe) as (found, _):
        pipe(**arguments)
    return found


def one(found):
    """The combination that all steps share."""
    assert sorted(found) == list(range(STEPS))
    (combination,) = set(found.values())
    return combination


def check(found, weights):
    combination = one(found)
    assert dict(zip(combination.parts, combination.weights, strict=True)) == pytest.approx(weights, abs=1e-3)
    assert combination.residual < 1e-3


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("family", ["pixart", "sd3"])
def test_uncond_first(family, batch):
    check(of_pipeline(family, batch, guidance_scale=SCALE), {FIRST: 1 - SCALE, SECOND: SCALE})


@pytest.mark.parametrize("batch", [1, 2])
def test_cond_first_in_a_pipeline_that_gives_both_halves_to_its_scheduler(batch):
    check(of_pipeline("dit", batch, guidance_scale=SCALE), {FIRST: SCALE, SECOND: 1 - SCALE})


def test_a_call_for_each_branch():
    check(of_pipeline("wan", guidance_scale=SCALE), {COND: SCALE, UNCOND: 1 - SCALE})


def test_true_guidance_beside_the_embedded_one():
    texts = tiny.call_arguments("flux", seed=5)
    negative = {f"negative_{name}": texts[name] for name in ("prompt_embeds", "pooled_prompt_embeds")}
    found = of_pipeline("flux", true_cfg_scale=SCALE, **negative)
    check(found, {COND: SCALE, UNCOND: 1 - SCALE})


@pytest.mark.parametrize(
    "family, call", [("flux", {}), ("pixart", {"guidance_scale": 1.0}), ("dit", {"guidance_scale": 1.0})]
)
@pytest.mark.parametrize("batch", [1, 2])
def test_no_guidance(family, call, batch):
    check(of_pipeline(family, batch, **call), {COND if family == "flux" else Part("fused"): 1.0})


def test_guidance_that_ends_early_is_known_for_each_step():
    def stop(pipe, step, timestep, values):
        if step == 1:
            pipe._guidance_scale = 0.0
            for name in ("prompt_embeds", "pooled_prompt_embeds"):
                values[name] = values[name].chunk(2)[1]
        return values

    inputs = ["latents", "prompt_embeds", "pooled_prompt_embeds"]
    found = of_pipeline(
        "sd3", guidance_scale=SCALE, callback_on_step_end=stop, callback_on_step_end_tensor_inputs=inputs
    )
    assert [found[step].parts for step in range(STEPS)] == [(FIRST, SECOND)] * 2 + [(Part("fused"),)] * 2
    assert found[0].weights == pytest.approx((1 - SCALE, SCALE), abs=1e-3)


def of_loop(names, guide, named=True):
    """Combinations of a loop of one's own with a call for each name; `guide` makes one output of theirs."""
    target = SimpleNamespace(
        transformer=tiny.transformer("sd3"), scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    )
    texts = {name: tiny.forward_arguments("sd3", seed, batch=1) for seed, name in enumerate(names)}
    target.scheduler.set_timesteps(STEPS)
    latents = tiny.forward_arguments("sd3", 9, batch=1)["hidden_states"]
    with torch.no_grad(), watched(target) as (found, handle):
        target.scheduler.set_timesteps(STEPS)
        for timestep in target.scheduler.timesteps:
            outputs = {}
            for name, text in texts.items():
                with handle.branch(name) if named else contextlib.nullcontext():
                    call = {**text, "hidden_states": latents, "timestep": timestep.expand(1)}
                    outputs[name] = target.transformer(**call, return_dict=False)[0]
            latents = target.scheduler.step(guide(**outputs), timestep, latents).prev_sample
    return found


def guided(cond, uncond):
    return torch.lerp(uncond, cond, SCALE)


@pytest.mark.parametrize("names", [("cond", "uncond"), ("uncond", "cond")])
def test_two_calls_of_a_loop_in_either_order(names):
    check(of_loop(names, guided), {COND: SCALE, UNCOND: 1 - SCALE})


@pytest.mark.parametrize("names", [("cond", "uncond"), ("uncond", "cond")])
def test_two_calls_without_names(names):
    """The second one before the scheduler advances is a branch of its own."""
    weights = {"cond": SCALE, "uncond": 1 - SCALE}
    for combination in of_loop(names, guided, named=False).values():
        assert combination.parts == (Part("fused"), Part("call 2"))
        assert combination.weights == pytest.approx([weights[name] for name in names], abs=1e-3)


def test_three_calls():
    check(
        of_loop(("cond", "uncond", "other"), lambda cond, uncond, other: guided(cond, uncond) + 2 * (cond - other)),
        {COND: SCALE + 2, UNCOND: 1 - SCALE, Part("other"): -2.0},
    )


def clipped(cond, uncond):
    return guided(cond, uncond).clamp(-0.5, 0.5)


def rescaled(cond, uncond):
    """As guidance_rescale does: another factor at every step, though nearly the same one."""
    return guided(cond, uncond) * (cond.std() / guided(cond, uncond).std())


def test_what_is_not_linear_gives_the_nearest_and_is_told(caplog):
    guidance._tell.cache_clear()
    combination = one(of_loop(("cond", "uncond"), clipped))
    assert 0.01 < combination.residual < 0.5 and combination.weights[0] > 0 > combination.weights[1]
    assert f"guidance is not linear; taken as {combination}, which misses {combination.residual:.0%}" in caplog.text


def test_guidance_rescale_is_close_to_linear(caplog):
    guidance._tell.cache_clear()
    combination = one(of_loop(("cond", "uncond"), rescaled))
    assert 1e-6 < combination.residual < 1e-2 and "guidance" not in caplog.text
    assert combination.weights[0] / combination.weights[1] == pytest.approx(SCALE / (1 - SCALE), rel=0.02)


def test_no_scheduler_no_guess():
    transformer = tiny.transformer("sd3")
    watching = Watching(SimpleNamespace(transformer=transformer, scheduler=None))
    with fastcache(transformer, FastCacheConfig(test="paper"), observer=watching):
        transformer(**tiny.forward_arguments("sd3"))
    assert watching.guidance.combinations() == {}


def test_everything_is_restored():
    pipe = tiny.pipeline("pixart")
    before, kind = vars(pipe.scheduler).keys() | vars(pipe.transformer).keys(), type(pipe.scheduler)
    with watched(pipe):
        assert type(pipe.scheduler) is not kind
    assert vars(pipe.scheduler).keys() | vars(pipe.transformer).keys() == before and type(pipe.scheduler) is kind
