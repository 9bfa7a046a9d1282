"""A handle after its cache is off: what it still knows, what it refuses, and that it holds no model."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from fastcache_xdit import enable, fastcache
from fastcache_xdit.errors import UsageError
from fastcache_xdit.plugin import _apply, applied, keeping
from tests import tiny
from tests.life.serving import CONFIGS, OUTPUT, STEPS, served, skips

EVERY = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def gone(reference: weakref.ref) -> bool:
    gc.collect()
    return reference() is None


@EVERY
@pytest.mark.parametrize("used", [True, False])
def test_a_handle_that_is_kept_holds_no_model_once_its_cache_is_off(config, used):
    pipe = tiny.pipeline("sd3")
    handle, transformer = enable(pipe, config), weakref.ref(pipe.transformer)
    if used:
        served(pipe)
    handle.disable()
    del pipe
    assert gone(transformer)
    assert handle.report().counters.requests == used and handle.report().bytes_held == 0


def test_a_model_that_learns_is_let_go_of_too():
    pipe = tiny.pipeline("sd3")
    handle, transformer = enable(pipe, budget=0.5, learn=4), weakref.ref(pipe.transformer)
    served(pipe)
    assert handle.recorded == 1
    handle.disable()
    del pipe
    assert gone(transformer)


@pytest.mark.parametrize("disabled", [True, False])
def test_caches_that_xdit_turned_on_are_forgotten_with_their_pipelines(disabled):
    for _ in range(3):
        pipe = tiny.pipeline("pixart")
        handle = _apply(pipe, '{"budget": 0.5, "learn": 0}')
        assert applied()[-1] is handle
        model, cache = weakref.ref(pipe.transformer), weakref.ref(handle)
        if disabled:
            handle.disable()
        del pipe, handle
        assert gone(model) and gone(cache)  # and so in no list; those of other tests may go at any time


def test_caches_that_xdit_turned_on_may_be_kept_for_a_while():
    with keeping() as handles:
        pipe = tiny.pipeline("pixart")
        cache = weakref.ref(_apply(pipe, '{"budget": 0.5, "learn": 0}'))
        del pipe
        assert not gone(cache) and handles == [cache()]
    del handles
    assert gone(cache)


def test_the_last_report_stays():
    pipe = tiny.pipeline("sd3")
    with fastcache(pipe, OUTPUT) as handle:
        served(pipe)
        plan = handle.plan
    assert skips(handle) == STEPS // 2 and handle.plan == plan != ""
    assert (handle.learnt, handle.recorded, handle.is_recording, handle.seconds_learning) == (None, 0, False, 0.0)
    handle.reset()
    with handle.branch("cond"), handle.paused():
        assert handle.report().counters.requests == 1


@pytest.mark.parametrize(
    "use",
    [
        lambda handle: handle.learn(),
        lambda handle: handle.at(budget=0.3).__enter__(),
        lambda handle: handle.watched(print).__enter__(),
        lambda handle: handle.focus(torch.ones(2, 2)),
    ],
    ids=["learn", "at", "watched", "focus"],
)
def test_what_needs_a_cache_is_refused_once_it_is_off(use):
    pipe = tiny.pipeline("sd3")
    with fastcache(pipe, learn=2) as handle:
        served(pipe)
    with pytest.raises(UsageError, match="this cache is off; enable FastCache anew|nothing is recorded"):
        use(handle)


@pytest.mark.parametrize("goal", [{"budget": None}, {"learn": 3}, {"learn": 0}, {}, {"budget": 0.3, "psnr": 30}])
def test_at_takes_one_goal_alone(goal):
    with (
        fastcache(tiny.pipeline("sd3"), OUTPUT) as handle,
        pytest.raises(UsageError, match="at takes one goal of a plan"),
        handle.at(**goal),
    ):
        pass


def test_learning_is_refused_after_the_last_request_was_learnt_from_or_lost():
    pipe = tiny.pipeline("sd3")
    with fastcache(pipe, learn=2) as handle, pytest.raises(UsageError, match="nothing is recorded"):
        handle.learn()


def test_an_exception_of_the_users_own_is_never_hidden():
    pipe = tiny.pipeline("sd3")
    with pytest.raises(KeyError), fastcache(pipe, CONFIGS["blocks"]):
        pipe.transformer._fastcache_handle = None  # as whatever replaces what the cache has set
        raise KeyError
    del pipe.transformer._fastcache_handle


@EVERY
def test_what_was_replaced_meanwhile_can_be_restored_by_a_second_call(config):
    pipe = tiny.pipeline("sd3")
    plain = served(pipe)
    handle = enable(pipe, config)
    pipe.transformer._fastcache_handle = None
    with pytest.raises(RuntimeError, match="undo that patch first"):
        handle.disable()
    assert torch.equal(served(pipe), plain), "all else is restored"
    pipe.transformer._fastcache_handle = handle
    handle.disable()
    with fastcache(pipe, config):
        served(pipe)
    assert torch.equal(served(pipe), plain)


@EVERY
def test_a_users_patch_of_a_forward_stays_and_the_cache_comes_off(config):
    pipe = tiny.pipeline("sd3")
    plain, calls = served(pipe), []
    handle = enable(pipe, config)
    forward = pipe.transformer.forward

    def counting(*args, **kwargs):
        calls.append(1)
        return forward(*args, **kwargs)

    pipe.transformer.forward = counting
    served(pipe)
    assert skips(handle) == STEPS // 2 and len(calls) == (STEPS // 2 if config is OUTPUT else STEPS)
    handle.disable()
    handle.disable()
    assert torch.equal(served(pipe), plain) and pipe.transformer.forward is counting
