"""Offload, hooks and compilation beside the cache, in every order: it goes on working, and everything is restored."""

from __future__ import annotations

import contextlib
import functools

import accelerate
import pytest
import torch
from torch.utils import _pytree as pytree

from fastcache_xdit import enable, fastcache
from tests import tiny
from tests.life.serving import CONFIGS, MASK, STEPS, served, skips

EVERY = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def offloaded(pipe):
    """Diffusers' own, which takes its hooks off and on after every call."""
    pipe.enable_model_cpu_offload(device="cpu")


def layerwise(pipe):
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float32, compute_dtype=torch.float32)


def grouped(pipe):
    pipe.transformer.enable_group_offload(
        onload_device=torch.device("cpu"), offload_type="block_level", num_blocks_per_group=2
    )


def hooked(pipe):
    """A user's own wrapper of a forward, and accelerate's hooks."""
    block = pipe.transformer.transformer_blocks[2]
    forward = block.forward
    block.forward = lambda *args, **kwargs: forward(*args, **kwargs)
    accelerate.hooks.add_hook_to_module(pipe.transformer, accelerate.hooks.ModelHook())


def compiled(pipe):
    pipe.transformer.compile(backend="eager")


HOOKS = [offloaded, layerwise, grouped, hooked]
CASES = [*((hook, name) for hook in HOOKS for name in CONFIGS), (compiled, "blocks")]


@pytest.fixture(scope="module")
def expected():
    pipe, results = tiny.pipeline("sd3"), {"uncached": served(tiny.pipeline("sd3"))}
    for name, config in CONFIGS.items():
        with fastcache(pipe, config):
            results[name] = served(pipe)
    return results


@pytest.mark.parametrize("hook, name", CASES)
@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_hooks_that_are_put_on_before_or_after_the_cache(hook, name, first, expected):
    pipe, config = tiny.pipeline("sd3"), CONFIGS[name]
    if first:
        hook(pipe)
    handle = enable(pipe, config)
    if not first:
        hook(pipe)
    for _ in range(2):
        assert torch.allclose(served(pipe), expected[name], atol=1e-5) and skips(handle) == STEPS // 2
    assert handle.report().remarks == ()
    handle.disable()
    assert torch.allclose(served(pipe), expected["uncached"], atol=1e-5)
    assert not [owner for owner in _parts(pipe) if any("fastcache" in key for key in vars(owner))]
    with fastcache(pipe, config) as again:
        assert torch.allclose(served(pipe), expected[name], atol=1e-5) and skips(again) == STEPS // 2


def _parts(pipe):
    return [pipe, pipe.scheduler, pipe.vae, *pipe.transformer.modules()]


@EVERY
def test_hooks_that_are_taken_off_while_the_cache_is_on(config, expected):
    pipe = tiny.pipeline("sd3")
    offloaded(pipe)
    with fastcache(pipe, config) as handle:
        served(pipe)
        pipe.remove_all_hooks()
        pipe._all_hooks = []
        served(pipe)
        assert skips(handle) == STEPS // 2
    assert torch.allclose(served(pipe), expected["uncached"], atol=1e-5)


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_weights_that_are_offloaded_one_by_one_are_loaded_for_computed_blocks_alone(first):
    """As `enable_sequential_cpu_offload` does; of a tiny pipeline it fails in accelerate, with the cache or without."""
    model, loaded = tiny.transformer("flux"), []
    sigmas = [1 - step / STEPS for step in range(STEPS)]
    whole = _loop(model, sigmas)
    with contextlib.ExitStack() as stack:
        if first:
            accelerate.cpu_offload(model, torch.device("cpu"))
        handle = stack.enter_context(fastcache(model, CONFIGS["blocks"], sigmas=sigmas))
        if not first:
            accelerate.cpu_offload(model, torch.device("cpu"))
        layer = model.single_transformer_blocks[-1].proj_out
        assert layer.weight.is_meta
        layer.register_forward_pre_hook(lambda *_: loaded.append(handle.report().ledger[-1].step))
        cached = _loop(model, sigmas)
        assert loaded == [step for step, mark in enumerate(MASK) if mark == "1"] and skips(handle) == STEPS // 2
    assert (cached - whole).norm() / whole.norm() < 0.05
    assert torch.equal(_loop(model, sigmas), whole)


@torch.no_grad()
def _loop(model, sigmas):
    calls = [tiny.forward_arguments("flux", timestep=1000 * sigma) for sigma in sigmas]
    return torch.stack([model(**arguments, return_dict=False)[0].clone() for arguments in calls])


class Graph:
    """A module's calls as a CUDA graph replays them: what it returns is in the same memory each time."""

    def __init__(self, module):
        self.call, self.memory = module.forward, {}
        module.forward = functools.wraps(self.call)(functools.partial(Graph.replay, self))

    def replay(self, *args, **kwargs):
        outputs, form = pytree.tree_flatten(self.call(*args, **kwargs))
        held = self.memory.setdefault(tuple(output.shape for output in outputs), [output.clone() for output in outputs])
        return pytree.tree_unflatten([kept.copy_(output) for kept, output in zip(held, outputs, strict=True)], form)


@EVERY
@pytest.mark.parametrize("has_scheduler", [True, False], ids=["pipeline", "loop"])
def test_outputs_in_memory_that_the_next_step_overwrites(config, has_scheduler):
    sigmas = [1 - step / STEPS for step in range(STEPS)]
    found = []
    for graphed in (False, True):
        pipe = tiny.pipeline("flux")  # which hands the output of its transformer to the scheduler as it is
        for module in [pipe.transformer, *pipe.transformer.transformer_blocks] if graphed else []:
            Graph(module)
        target, more = (pipe, {}) if has_scheduler else (pipe.transformer, {"sigmas": sigmas})
        with fastcache(target, config, **more) as handle:
            if has_scheduler:
                found.append(pipe(**tiny.call_arguments("flux"), num_inference_steps=STEPS)[0])
            else:
                found.append(_loop(pipe.transformer, sigmas))
            assert skips(handle) == STEPS // 2
    assert torch.equal(*found)


def test_a_model_whose_weights_are_offloaded_one_by_one_is_known_by_them():
    from fastcache_xdit.host.find import host_of
    from fastcache_xdit.host.identity import identity

    model = tiny.transformer("flux")
    before = identity(host_of(model))
    accelerate.cpu_offload(model, torch.device("cpu"))
    assert identity(host_of(model)) == before


@EVERY
@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_a_compiled_transformer_in_the_place_of_its_own(config, first, expected):
    pipe = tiny.pipeline("sd3")
    plain, name = pipe.transformer, next(name for name, other in CONFIGS.items() if other is config)
    with contextlib.ExitStack() as stack:
        if first:
            pipe.transformer = torch.compile(plain, backend="eager")
        handle = stack.enter_context(fastcache(pipe, config))
        if not first:
            pipe.transformer = torch.compile(plain, backend="eager")
        assert torch.allclose(served(pipe), expected[name], atol=1e-5) and skips(handle) == STEPS // 2
        with pytest.raises(ValueError, match="already enabled"):
            enable(pipe, config)
    assert torch.allclose(served(pipe), expected["uncached"], atol=1e-5)
    pipe.transformer = plain
    assert torch.allclose(served(pipe), expected["uncached"], atol=1e-5)
