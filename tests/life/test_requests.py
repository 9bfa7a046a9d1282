"""A request belongs to the scheduler and the thread that began it; what is none of its calls is computed in full."""

from __future__ import annotations

import contextlib
import copy
import threading

import pytest
import torch
from diffusers import StableDiffusion3Img2ImgPipeline, StableDiffusion3Pipeline

from fastcache_xdit import enable, fastcache
from tests import tiny
from tests.life.serving import CONFIGS, STEPS, served, skips

EVERY = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


@pytest.fixture(scope="module")
def pipe():
    return tiny.pipeline("sd3")


@pytest.fixture(scope="module")
def plain(pipe):
    return [served(pipe, seed) for seed in range(3)]


def beside(pipe, kind=StableDiffusion3Pipeline):
    """Another pipeline on the same transformer, with a scheduler of its own."""
    other = kind.from_pipe(pipe, scheduler=copy.deepcopy(pipe.scheduler))
    assert other.transformer is pipe.transformer
    other.set_progress_bar_config(disable=True)
    return other


@EVERY
def test_a_pipeline_with_a_scheduler_of_its_own_is_computed_in_full(pipe, plain, config, caplog):
    other = beside(pipe)
    with fastcache(pipe, config) as handle:
        cached = served(pipe)
        assert torch.equal(served(other, 1), plain[1])
        assert torch.equal(served(pipe), cached) and skips(handle) == STEPS // 2
        report = handle.report()
    assert report.counters.bypassed_calls == STEPS
    assert report.remarks and report.remarks[0] in caplog.text and "no request that this cache knows" in caplog.text


@EVERY
def test_one_that_shares_the_scheduler_is_cached(pipe, config):
    other = StableDiffusion3Pipeline.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    with fastcache(pipe, config) as handle:
        cached = served(pipe)
        assert torch.equal(served(other), cached) and skips(handle) == STEPS // 2
        assert handle.report().remarks == ()


def interrupt(pipe, index, timestep, values):
    pipe._interrupt = index == STEPS // 2 - 1
    return values


def fail(pipe, index, timestep, values):
    if index == STEPS // 2 - 1:
        raise KeyError
    return values


@EVERY
@pytest.mark.parametrize("callback", [interrupt, fail])
@pytest.mark.parametrize("shares", [False, True], ids=["own scheduler", "shared scheduler"])
def test_a_request_that_is_given_up_ends_before_any_other_one(pipe, plain, config, callback, shares):
    """Given up by the pipeline itself, or by another one that shares its scheduler and that nobody listens to."""
    other, third = StableDiffusion3Pipeline.from_pipe(pipe) if shares else pipe, beside(pipe)
    other.set_progress_bar_config(disable=True)
    with fastcache(pipe, config) as handle:
        cached = served(pipe)
        with contextlib.suppress(KeyError):
            served(other, 2, callback_on_step_end=callback)
        assert torch.equal(served(third, 1), plain[1])
        assert torch.equal(served(pipe), cached) and skips(handle) == STEPS // 2


def test_what_was_kept_of_a_request_that_is_given_up_is_freed(pipe):
    with fastcache(pipe, CONFIGS["blocks"]) as handle:
        served(pipe)
        assert handle.report().bytes_held > 0
        served(pipe, callback_on_step_end=interrupt)
        assert handle.report().bytes_held == 0


@EVERY
def test_a_pipeline_that_is_called_within_a_request_of_another_one_ends_it(pipe, plain, config):
    other, seen = beside(pipe), []

    def preview(_, index, timestep, values):
        if index == STEPS // 2 - 1:
            seen.append(served(other, 1))
        return values

    with fastcache(pipe, config) as handle:
        cached = served(pipe)
        mixed = served(pipe, callback_on_step_end=preview)
        assert torch.equal(seen[0], plain[1])
        assert (mixed - plain[0]).norm() <= (cached - plain[0]).norm()
        assert torch.equal(served(pipe), cached) and len(handle.report().remarks) == 1


def test_an_unknown_pipelines_requests_begin_with_its_loop_where_a_bare_transformer_is_cached(pipe):
    """Image to image begins at less noise than the request before it ended at, which no timestep shows."""
    late = StableDiffusion3Img2ImgPipeline.from_pipe(pipe)
    late.set_progress_bar_config(disable=True)
    arguments = {name: value for name, value in tiny.call_arguments("sd3").items() if name not in ("latents",)}
    arguments |= {"image": torch.zeros(1, 3, 128, 128), "strength": 0.25, "generator": torch.Generator()}

    def refined():
        arguments["generator"].manual_seed(0)
        return torch.as_tensor(late(**arguments, num_inference_steps=STEPS)[0])

    config = CONFIGS["blocks"].model_copy(update={"schedule": None, "test": "paper", "error_budget": 100.0})
    with fastcache(pipe.transformer, config):
        alone = refined()
    with fastcache(pipe.transformer, config) as handle:
        served(pipe, callback_on_step_end=interrupt)
        assert torch.equal(refined(), alone)
        assert handle.report().counters.requests == 2


@EVERY
def test_threads_at_once_on_one_transformer_are_never_mixed(pipe, plain, config):
    """One thread stays inside of a step while another one makes a whole request."""
    other, results = beside(pipe), {}
    inside, goes_on = threading.Event(), threading.Event()

    def wait(*_):
        if threading.current_thread().name == "first" and not inside.is_set():
            inside.set()
            assert goes_on.wait(120)

    def first():
        results["first"] = served(pipe)

    with fastcache(pipe, config) as handle:
        cached = served(pipe)
        hook = pipe.transformer.transformer_blocks[3].register_forward_pre_hook(wait)
        thread = threading.Thread(target=first, name="first")
        thread.start()
        try:
            assert inside.wait(120)
            results["second"] = served(other, 1)
        finally:
            goes_on.set()
            thread.join(120)
            hook.remove()
        assert torch.equal(results["second"], plain[1])
        assert torch.equal(results["first"], cached)
        assert skips(handle) == STEPS // 2 and "several threads" in handle.report().remarks[0]


def test_threads_that_take_turns_step_by_step_on_one_bare_transformer_are_never_mixed(pipe):
    """Two user's loops, each in a thread of its own: one is cached, and the other one computed in full."""
    model, barrier = tiny.transformer("flux"), threading.Barrier(2)
    config = CONFIGS["blocks"].model_copy(update={"schedule": None, "test": "paper", "error_budget": 100.0})
    results: dict[int, list[torch.Tensor]] = {}

    @torch.no_grad()
    def loop(seed, turns=None):
        outputs = []
        for timestep in [1.0, 0.8, 0.6, 0.4, 0.2]:
            arguments = tiny.forward_arguments("flux", seed=seed, timestep=1000 * timestep)
            for turn in range(2 if turns is not None else 1):
                if turns in (None, turn):
                    outputs.append(model(**arguments, return_dict=False)[0])
                if turns is not None:
                    barrier.wait(120)
        results[seed] = outputs

    loop(1)
    whole = results.pop(1)
    with fastcache(model, config):
        loop(0)
        cached = results.pop(0)
    with fastcache(model, config) as handle:
        threads = [threading.Thread(target=loop, args=(seed, seed)) for seed in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(240)
        assert handle.report().counters.bypassed_calls == len(whole)
    assert all(map(torch.equal, results[0], cached)) and all(map(torch.equal, results[1], whole))


def test_a_pipeline_whose_parts_were_replaced_says_that_it_is_not_cached(pipe, plain, caplog):
    mine = StableDiffusion3Pipeline.from_pipe(pipe)
    mine.set_progress_bar_config(disable=True)
    with fastcache(mine, CONFIGS["blocks"]) as handle:
        mine.scheduler = copy.deepcopy(pipe.scheduler)
        assert torch.equal(served(mine), plain[0])
        assert any("enable it anew" in line for line in handle.report().remarks)
    assert "another one than when the cache was enabled" in caplog.text


def test_two_caches_that_share_a_scheduler_come_off_in_any_order(pipe, plain):
    before = dict(vars(pipe.scheduler)), type(pipe.scheduler)
    twin = StableDiffusion3Pipeline.from_pipe(pipe, transformer=copy.deepcopy(pipe.transformer))
    twin.set_progress_bar_config(disable=True)
    first, second = enable(pipe, CONFIGS["blocks"]), enable(twin, CONFIGS["output"])
    first.disable()
    assert torch.equal(served(pipe), plain[0])
    served(twin)
    assert skips(second) == STEPS // 2
    second.disable()
    assert torch.equal(served(twin), plain[0])
    assert set(vars(pipe.scheduler)) == set(before[0]) | {"_step_index"} and type(pipe.scheduler) is before[1]
