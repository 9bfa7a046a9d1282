"""What the cache itself takes of a step: Python's calls for skipped blocks, and reads that wait for the device."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

import fastcache_xdit
from fastcache_xdit import FastCacheConfig, fastcache
from tests import tiny

HOME = str(Path(fastcache_xdit.__file__).parent)
STEPS = 8
FEW = 4
BLOCKS = 57  # of FLUX.1
CALLS_EACH = 14  # of Python functions of ours, for a block that is skipped; a thousandth of a second has some 10000
CALLS_ONCE = 120  # for a step
TEST = {"test": "paper", "error_budget": 1.0}
READS = {
    getattr(torch.Tensor, name)
    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__")
}


@pytest.fixture(scope="module")
def deep():
    return tiny.transformer("flux", num_layers=19, num_single_layers=38)


def stepped(model, around):
    """Call the model for each step of a request, inside of `around(step)`."""
    with torch.no_grad():
        for step in range(STEPS):
            arguments = tiny.forward_arguments("flux", batch=1, pixels=32, timestep=1000 * (1 - step / STEPS))
            with around(step):
                model(**arguments, return_dict=False)


class OwnCalls:
    """Counts calls of the package's functions at one step."""

    def __init__(self, step):
        self.step, self.count = step, 0
        self.now = None

    def __call__(self, step):
        self.now = step
        return self

    def __enter__(self):
        if self.now == self.step:
            sys.setprofile(self._called)

    def __exit__(self, *_):
        sys.setprofile(None)

    def _called(self, frame, event, _):
        self.count += event == "call" and frame.f_code.co_filename.startswith(HOME)


def test_a_skipped_step_takes_few_calls_of_python_for_each_block(deep):
    config = FastCacheConfig.scheduled("1" + "0" * (STEPS - 1), lead_blocks=0)
    with fastcache(deep, config, sigmas=[1 - step / STEPS for step in range(STEPS)]) as handle:
        counted = OwnCalls(STEPS - 2)
        stepped(deep, counted)
        counters = handle.report().counters
    assert 0 < counted.count <= CALLS_ONCE + CALLS_EACH * BLOCKS
    assert set(counters.approximated.values()) == {STEPS - 1} and len(counters.approximated) == BLOCKS
    assert set(counters.computed.values()) == {1} and len(counters.computed) == BLOCKS
    assert set(counters.approximated_tokens.values()) == {4 * (STEPS - 1)}


class HostReads(TorchFunctionMode):
    """Counts reads of tensors that a GPU would hold: all but what was copied to the host or made there."""

    def __init__(self):
        super().__init__()
        self.count, self._on_host = 0, {}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [part for part in pytree.tree_leaves((args, kwargs)) if isinstance(part, torch.Tensor)]
        is_made = not tensors and kwargs.get("device") is None
        is_on_host = is_made or (bool(tensors) and all(id(part) in self._on_host for part in tensors))
        self.count += function in READS and not is_on_host
        output = function(*args, **kwargs)
        if is_on_host or function is torch.Tensor.cpu:
            self._on_host |= {id(part): part for part in pytree.tree_leaves(output) if isinstance(part, torch.Tensor)}
        return output


def reads_each_step(pipe, family, config=None):
    """Reads of a request that come with each further step; what a request reads once does not count."""
    with fastcache(pipe, config) if config else contextlib.nullcontext():
        counts = []
        for steps in (FEW, 2 * FEW):
            with HostReads() as found:
                pipe(**tiny.call_arguments(family), num_inference_steps=steps)
            counts.append(found.count)
    return (counts[1] - counts[0]) / FEW


@pytest.mark.parametrize("family", ["pixart", "flux", "sd3"])
def test_a_plan_reads_nothing_and_a_test_once_for_a_decision(family):
    pipe = tiny.pipeline(family)
    plain = reads_each_step(pipe, family)
    assert reads_each_step(pipe, family, FastCacheConfig(learn=0)) == plain
    assert reads_each_step(pipe, family, FastCacheConfig.scheduled("10" * FEW)) == plain
    assert reads_each_step(pipe, family, FastCacheConfig(**TEST)) == plain + 1
    assert reads_each_step(pipe, family, FastCacheConfig(**TEST, sync="ahead")) == plain + 1
    if family == "flux":
        each = FastCacheConfig(**TEST, granularity="block", sync="block")
        assert reads_each_step(pipe, family, each) == plain + 7
