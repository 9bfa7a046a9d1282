"""Copies of a scheduler, a transformer or a pipeline with the cache on are their own: uncached, and without a trace."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from fastcache_xdit import fastcache
from tests import tiny
from tests.life.serving import BLOCKS, CONFIGS, STEPS, served, skips

WAYS = {
    "shallow": copy.copy,
    "deep": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
}


@pytest.fixture(scope="module")
def pipe():
    return tiny.pipeline("sd3")


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_copy_of_the_scheduler_is_set_up_by_itself(pipe, way):
    with fastcache(pipe, BLOCKS) as handle:
        served(pipe)
        own = list(pipe.scheduler.timesteps)
        copied = way(pipe.scheduler)
        copied.set_timesteps(3)
        assert len(copied.timesteps) == 3 and list(pipe.scheduler.timesteps) == own
        served(pipe)
        assert handle.report().counters.requests == 2
    assert type(copied) is type(pipe.scheduler)


@pytest.mark.parametrize("way", [WAYS["deep"], WAYS["pickle"]], ids=["deep", "pickle"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_copy_of_the_transformer_is_uncached(pipe, way, config):
    arguments = tiny.forward_arguments("sd3")
    plain = pipe.transformer(**arguments)[0]
    with fastcache(pipe, config) as handle:
        served(pipe)
        copied = way(pipe.transformer)
        calls = handle.report().counters.transformer_calls + handle.report().counters.bypassed_calls
        assert torch.equal(copied(**arguments)[0], plain)
        copied.transformer_blocks[0].attn.to_q.weight.mul_(0)
        assert handle.report().counters.transformer_calls + handle.report().counters.bypassed_calls == calls
        assert not torch.equal(copied(**arguments)[0], plain), "the copy has weights of its own"
        assert torch.equal(served(pipe), served(pipe))
    assert type(copied) is type(pipe.transformer) and set(vars(copied)) == set(vars(pipe.transformer))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_deep_copy_of_the_pipeline_is_uncached_and_can_be_cached_on_its_own(pipe, config):
    plain = served(pipe)
    with fastcache(pipe, config) as handle:
        cached = served(pipe)
        copied = copy.deepcopy(pipe)
        assert torch.equal(served(copied), plain)
        with fastcache(copied, config) as other:
            assert torch.equal(served(copied), cached)
        assert handle.report().counters.requests == other.report().counters.requests == 1
        assert torch.equal(served(pipe), cached) and skips(handle) == STEPS // 2
    assert torch.equal(served(copied), plain)
