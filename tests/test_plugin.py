"""The promises where blocks are skipped: untouched, bit-identical without skips, restored, nothing leaks."""

import pytest
import torch
from torch import nn

from fastcache_xdit import FastCacheConfig, enable, fastcache
from fastcache_xdit.errors import UsageError
from tests import tiny

SKIPPING = FastCacheConfig(test="paper", error_budget=1.0)  # up to a change of 100 %
STEPS = 8


def generate(pipe, family, seed=0, **changes):
    arguments = {**tiny.call_arguments(family, seed=seed, **changes), "num_inference_steps": STEPS}
    images = pipe(**arguments)[0]
    return images if torch.is_tensor(images) else torch.as_tensor(images)


def traces(pipe):
    """Every attribute that any module or the scheduler holds itself."""
    owners = dict(pipe.transformer.named_modules())
    return {name: dict(vars(module)) for name, module in owners.items()} | {"scheduler": set(vars(pipe.scheduler))}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_budget_of_zero_and_disabled_are_bit_identical(family):
    pipe = tiny.pipeline(family)
    plain, before = generate(pipe, family), traces(pipe)
    with fastcache(pipe, FastCacheConfig(test="paper", error_budget=0)) as handle:
        assert torch.equal(generate(pipe, family), plain)
        assert str(handle.report()).startswith("nothing was skipped")
    with fastcache(pipe, SKIPPING) as handle:
        cached = generate(pipe, family)
        assert handle.report().counters.approximated.total() > 0 and not torch.equal(cached, plain)
    assert traces(pipe) == before
    assert torch.equal(generate(pipe, family), plain)


@pytest.mark.parametrize("granularity", ["step", "group", "block"])
@pytest.mark.parametrize("sync", ["step", "block", "ahead"])
def test_skipping_stays_close_and_is_counted_exactly(granularity, sync):
    pipe = tiny.pipeline("sd3")
    plain = generate(pipe, "sd3")
    with fastcache(pipe, SKIPPING.model_copy(update={"granularity": granularity, "sync": sync})) as handle:
        cached = generate(pipe, "sd3")
    report = handle.report()
    assert (cached - plain).norm() / plain.norm() < 0.01
    assert report.counters.computed.total() + report.counters.approximated.total() == STEPS * 8
    skipped = sum(entry.skip for entry in report.ledger)
    blocks_each = {"step": 7, "group": 7 / 4, "block": 1}[granularity]
    assert report.counters.approximated.total() == pytest.approx(skipped * blocks_each, abs=skipped)
    assert len(report.ledger) == STEPS * {"step": 1, "group": 4, "block": 7}[granularity]


def test_hard_limits_show_in_the_ledger():
    pipe = tiny.pipeline("flux")
    config = FastCacheConfig(
        test="paper", error_budget=100, warmup_steps=2, cooldown_steps=2, max_consecutive_skips=1, lead_blocks=3
    )
    with fastcache(pipe, config) as handle:
        generate(pipe, "flux")
    ledger = handle.report().ledger
    assert [entry.skip for entry in ledger] == [False, False, True, False, True, False, False, False]
    assert [entry.reason for entry in ledger][:4] == ["no reference", "warm-up", "insignificant", "longest run"]
    assert [entry.reason for entry in ledger][-2:] == ["cool-down", "cool-down"]
    assert handle.report().counters.computed["transformer_blocks.2"] == STEPS


def test_requests_do_not_touch_each_other():
    pipe = tiny.pipeline("pixart")
    requests = [{"seed": 1}, {"seed": 2, "pixels": 192, "batch": 2}, {"seed": 3}]
    alone = []
    for request in requests:
        with fastcache(pipe, SKIPPING):
            alone.append(generate(pipe, "pixart", **request))
    with fastcache(pipe, SKIPPING) as handle:
        together = [generate(pipe, "pixart", **request) for request in requests]
    assert all(torch.equal(*pair) for pair in zip(alone, together, strict=True))
    assert handle.report().counters.requests == 3
    assert len(handle.report().ledger) == STEPS, "the ledger is the last request's"


def test_an_exception_in_a_step_leaves_nothing_behind():
    pipe = tiny.pipeline("pixart")
    before = traces(pipe)
    with fastcache(pipe, SKIPPING):
        clean = generate(pipe, "pixart")
    with pytest.raises(KeyError), fastcache(pipe, SKIPPING):
        _fail_in_step(pipe, 5)
    assert traces(pipe) == before
    with fastcache(pipe, SKIPPING):
        with pytest.raises(KeyError):
            _fail_in_step(pipe, 5)
        assert torch.equal(generate(pipe, "pixart"), clean)


def _fail_in_step(pipe, step):
    calls = []

    def fail(*_):
        calls.append(1)
        if len(calls) == step:
            raise KeyError

    hook = pipe.transformer.transformer_blocks[0].register_forward_pre_hook(fail)
    try:
        generate(pipe, "pixart")
    finally:
        hook.remove()


def test_enable_disable_enable():
    pipe = tiny.pipeline("pixart")
    before = traces(pipe)
    first = enable(pipe, SKIPPING)
    with pytest.raises(ValueError, match=r"already enabled.*handle.disable\(\)"):
        enable(pipe, SKIPPING)
    first.disable()
    first.disable()
    assert traces(pipe) == before
    with fastcache(pipe, SKIPPING) as second:
        generate(pipe, "pixart")
    assert second.report().counters.approximated.total() > 0
    assert first.report().counters.computed.total() == 0


def test_reset_forgets_counts_and_references():
    pipe = tiny.pipeline("pixart")
    with fastcache(pipe, SKIPPING) as handle:
        generate(pipe, "pixart")
        assert handle.report().bytes_held > 0
        handle.reset()
        assert handle.report().bytes_held == 0 and handle.report().counters.computed.total() == 0


@pytest.mark.parametrize(
    "target, words",
    [
        (lambda: nn.Linear(2, 2), "nothing tells the steps of Linear apart"),
        (lambda: object(), "object has no transformer"),
        (lambda: _with_rival(tiny.transformer("flux")), r"disable_cache\(\) first"),
        (lambda: _with_second(tiny.pipeline("pixart")), "two transformers, and no boundary_ratio"),
    ],
)
def test_what_cannot_be_cached_is_refused_by_name(target, words):
    with pytest.raises(ValueError, match=words):
        enable(target(), SKIPPING)


def _with_rival(model):
    from diffusers import FirstBlockCacheConfig

    model.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    return model


def _with_second(pipe):
    pipe.transformer_2 = pipe.transformer
    return pipe


def test_lead_blocks_must_leave_something():
    with pytest.raises(ValueError, match="lead_blocks=8 leaves nothing to skip: .* has 8 blocks; .* at most 7"):
        enable(tiny.transformer("dit"), FastCacheConfig(test="paper", lead_blocks=8))


LOOSE = FastCacheConfig(test="paper", error_budget=100, warmup_steps=2)


def loop(model, timesteps, branches=(None,), handle=None):
    """A user's own denoising loop over a bare transformer."""
    outputs = []
    for timestep in timesteps:
        for seed, name in enumerate(branches):
            arguments = tiny.forward_arguments("flux", seed=seed, timestep=timestep)
            with torch.no_grad(), handle.branch(name) if name else torch.no_grad():
                outputs.append(model(**arguments, return_dict=False)[0])
    return outputs


def test_a_bare_transformer_in_a_users_loop():
    model = tiny.transformer("flux")
    with fastcache(model, LOOSE) as handle:
        loop(model, [1.0, 0.8, 0.6])
        assert [entry.skip for entry in handle.report().ledger] == [False, False, True]
        loop(model, [1.0, 0.8])
        assert [entry.skip for entry in handle.report().ledger] == [False, False], "a larger timestep is a new request"
        assert handle.report().counters.requests == 2


def test_named_branches_keep_their_own_references():
    model = tiny.transformer("flux")
    with fastcache(model, LOOSE) as handle:
        both = loop(model, [1.0, 0.8, 0.6], ("cond", "uncond"), handle)
        assert {entry.branch for entry in handle.report().ledger} == {"cond", "uncond"}
    with fastcache(model, LOOSE):
        assert torch.equal(loop(model, [1.0, 0.8, 0.6])[-1], both[-2]), "one branch alone is the same"


def test_cache_contexts_of_diffusers_name_branches():
    model = tiny.transformer("flux")
    with fastcache(model, LOOSE) as handle:
        with model.cache_context("cond"):
            loop(model, [1.0])
        assert handle.report().ledger[0].branch == "cond"


def test_unnamed_extra_calls_are_computed_in_full(caplog):
    model = tiny.transformer("flux")
    plain = loop(model, [0.6])
    with fastcache(model, LOOSE) as handle:
        loop(model, [1.0, 0.8, 0.6])
        assert torch.equal(loop(model, [0.6])[0], plain[0])
        assert handle.report().counters.bypassed_calls == 1
    assert "name it" in caplog.text


def test_arguments_that_reach_between_blocks_bypass_the_cache():
    pipe = tiny.pipeline("sd3")
    with fastcache(pipe, LOOSE) as handle:
        generate(pipe, "sd3")
        arguments = tiny.forward_arguments("sd3")
        with torch.no_grad():
            pipe.transformer(**arguments, skip_layers=[1])
    assert handle.report().counters.bypassed_calls == 1


@pytest.mark.parametrize("tokens, bypassed", [(None, 0), ({"keep_ratio": 0.5, "bucket": 2}, 2)])
def test_what_a_controlnet_adds_is_skipped_with_its_segment_but_never_for_some_tokens(tokens, bypassed):
    pipe = tiny.pipeline("sd3")
    config = FastCacheConfig.scheduled("1p" if tokens else "10", tokens=tokens, stand_in="reuse")
    arguments = tiny.forward_arguments("sd3")
    added = [torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(layer)) for layer in range(2)]
    with fastcache(pipe, config) as handle, torch.no_grad():
        pipe.scheduler.set_timesteps(2)
        first = pipe.transformer(**arguments, block_controlnet_hidden_states=added)[0]
        arguments["timestep"] = arguments["timestep"] - 1e-3  # the same call, but of the next step
        again = pipe.transformer(**arguments, block_controlnet_hidden_states=added)[0]
        counters = handle.report().counters
    torch.testing.assert_close(again, first, rtol=1e-4, atol=1e-4)
    assert counters.bypassed_calls == bypassed and (counters.approximated.total() > 0) is (tokens is None)


@pytest.mark.parametrize("config", ["careful.yaml", {"budget": 0.4}])
def test_a_config_is_a_config(config):
    with pytest.raises(UsageError, match="config must be a FastCacheConfig, not (str|dict)"):
        enable(tiny.transformer("pixart"), config)
