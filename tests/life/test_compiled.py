"""`torch.compile` beside the cache, in every way and order: skipped steps compile nothing, graph breaks are few."""

from __future__ import annotations

import contextlib
from itertools import product

import pytest
import torch
from torch._dynamo.utils import counters

from fastcache_xdit import fastcache
from tests import tiny
from tests.life.serving import CONFIGS, STEPS, skips


def in_place(pipe, backend):
    pipe.transformer.compile(backend=backend)


def replaced(pipe, backend):
    pipe.transformer = torch.compile(pipe.transformer, backend=backend)


def forward_replaced(pipe, backend):
    """As xDiT's pipeline classes have it."""
    pipe.transformer.forward = torch.compile(pipe.transformer.forward, backend=backend)


def repeated(pipe, backend):
    """Block by block, as diffusers has it."""
    pipe.transformer.compile_repeated_blocks(backend=backend)


def listed(pipe, backend):
    """Block by block, as xDiT's runner has it beside a cache."""
    for blocks in (pipe.transformer.transformer_blocks, pipe.transformer.single_transformer_blocks):
        for number, block in enumerate(blocks):
            blocks[number] = torch.compile(block, backend=backend)


WAYS = (in_place, replaced, forward_replaced, repeated, listed)


def served(pipe):
    """Latents of one request."""
    return torch.as_tensor(pipe(**tiny.call_arguments("flux"), num_inference_steps=STEPS)[0])


def pipeline():
    return tiny.pipeline("flux", num_layers=2, num_single_layers=2)


class Compiler:
    """A backend that compiles nothing and counts the graphs that it is given."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, _):
        self.graphs += 1
        return graph.forward


@pytest.fixture(scope="module")
def expected():
    pipe = pipeline()
    results = {"uncached": served(pipe)}
    for name, config in CONFIGS.items():
        with fastcache(pipe, config):
            results[name] = served(pipe)
    return results


def forget():
    torch._dynamo.reset()
    counters.clear()


def breaks():
    return sum(counters["graph_break"].values())


@pytest.fixture(scope="module")
def plain_breaks():
    """Graph breaks of the model without a cache, by way."""
    found = {}
    for way in WAYS:
        forget()
        pipe = pipeline()
        way(pipe, Compiler())
        served(pipe)
        found[way] = breaks()
    return found


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("way, name", [*product(WAYS, ["blocks"]), (in_place, "output")])
def test_requests_after_the_first_compile_nothing(way, first, name, expected, plain_breaks):
    pipe, compiler = pipeline(), Compiler()
    forget()
    with contextlib.ExitStack() as stack:
        if first:
            way(pipe, compiler)
        handle = stack.enter_context(fastcache(pipe, CONFIGS[name]))
        if not first:
            way(pipe, compiler)
        assert torch.allclose(served(pipe), expected[name], atol=1e-5)
        graphs = compiler.graphs
        assert graphs > 0 and breaks() <= plain_breaks[way] + 1
        assert torch.allclose(served(pipe), expected[name], atol=1e-5) and skips(handle) == STEPS // 2
        assert compiler.graphs == graphs, "something was compiled anew"
    assert torch.allclose(served(pipe), expected["uncached"], atol=1e-5)


@pytest.mark.parametrize("name", ["output", "blocks"])
def test_blocks_that_were_warmed_up_are_not_compiled_anew(name, expected):
    """As xDiT's runner has it: blocks are compiled, and run, before the cache is enabled."""
    pipe, compiler = pipeline(), Compiler()
    forget()
    listed(pipe, compiler)
    served(pipe)
    graphs = compiler.graphs
    with fastcache(pipe, CONFIGS[name]) as handle:
        assert torch.allclose(served(pipe), expected[name], atol=1e-5) and skips(handle) == STEPS // 2
    assert compiler.graphs == graphs > 0
