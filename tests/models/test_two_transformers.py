"""Pipelines of two transformers that take turns by the noise level, as those of Wan 2.2."""

from __future__ import annotations

import pytest
import torch

from fastcache_xdit import FastCacheConfig, fastcache
from fastcache_xdit.errors import UsageError
from tests import tiny

STEPS, BOUNDARY = 10, 0.75
LEARN = 2


@pytest.fixture(scope="module")
def pipe():
    pipe, other = tiny.pipeline("wan"), tiny.transformer("wan")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.2)  # other weights: another function of latents and noise
    pipe.register_modules(transformer_2=other)
    pipe.register_to_config(boundary_ratio=BOUNDARY)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe, seed=0, **changes):
    arguments = {**tiny.call_arguments("wan"), "num_inference_steps": STEPS, "guidance_scale": 3.0, **changes}
    generator = torch.Generator().manual_seed(seed)
    return pipe(**{**arguments, "output_type": "latent", "generator": generator})[0]


def switch_of(pipe):
    return next(step for step, time in enumerate(pipe.scheduler.timesteps) if time < 1000 * BOUNDARY)


@pytest.fixture(scope="module")
def whole(pipe):
    return generate(pipe)


def skipped(handle):
    return sorted({entry.step for entry in handle.report().ledger if entry.skip})


def test_with_the_whole_budget_every_bit_is_the_same(pipe, whole):
    with fastcache(pipe, budget=1, learn=0):
        assert torch.equal(generate(pipe), whole)


def test_the_first_step_of_the_second_one_is_computed(pipe, whole):
    switch = switch_of(pipe)
    assert 2 < switch < STEPS - 2
    mask = "".join("0" if step in (2, switch, STEPS - 1) else "1" for step in range(STEPS))
    with fastcache(pipe, FastCacheConfig.scheduled(mask).model_copy(update={"granularity": "output"})) as handle:
        generate(pipe)
    assert switch not in skipped(handle) and {2, STEPS - 1} < set(skipped(handle))


@pytest.mark.parametrize("budget", [0.3, 0.5, 0.7])
def test_a_plan_keeps_its_budget(pipe, whole, budget):
    with fastcache(pipe, budget=budget, learn=0) as handle:
        latents = generate(pipe)
        again = generate(pipe)
    assert len(skipped(handle)) == STEPS - round(budget * STEPS)
    assert switch_of(pipe) not in skipped(handle)
    assert torch.equal(latents, again)
    assert 0 < (latents - whole).norm() / whole.norm() < 0.2


def test_what_is_learnt_knows_both(pipe, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTCACHE_HOME", str(tmp_path))
    with fastcache(pipe, budget=0.5, learn=0):
        pooled = generate(pipe, seed=9)
    with fastcache(pipe, budget=0.5, learn=LEARN) as handle:
        for seed in range(LEARN):
            generate(pipe, seed)
        learnt = generate(pipe, seed=9)
        with handle.paused():
            whole = generate(pipe, seed=9)
        assert handle.learnt.identity["model_config"].count("+") == 1
    assert (learnt - whole).norm() < (pooled - whole).norm()


def test_another_second_one_is_another_model(pipe, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTCACHE_HOME", str(tmp_path))
    with fastcache(pipe, budget=0.5, learn=1):
        generate(pipe)
    with fastcache(pipe, budget=0.5, learn=1) as handle:
        assert handle.learnt
    first = pipe.transformer_2
    pipe.register_modules(transformer_2=tiny.transformer("wan"))
    try:
        with fastcache(pipe, budget=0.5, learn=1) as handle:
            assert not handle.learnt
    finally:
        pipe.register_modules(transformer_2=first)


def test_disabling_restores_both(pipe, whole):
    with fastcache(pipe, budget=0.5, learn=0):
        generate(pipe)
        with pytest.raises(UsageError, match="already enabled"):
            fastcache(pipe).__enter__()
    for transformer in (pipe.transformer, pipe.transformer_2):
        assert not {"forward", "cache_context"} & set(vars(transformer))
    assert torch.equal(generate(pipe), whole)


def test_blocks_are_for_one_transformer(pipe):
    with pytest.raises(UsageError, match="two are called here; set granularity: output"), fastcache(pipe, test="paper"):
        pass
