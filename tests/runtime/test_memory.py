"""What the states of blocks take, and standing in for the output where that is more than it may be."""

from __future__ import annotations

import pytest
import torch

from fastcache_xdit import FastCacheConfig, fastcache
from fastcache_xdit.errors import UsageError
from fastcache_xdit.host.xdit.layout import Layout, check_cache
from tests import tiny

MASK = "11010010"


def request(pipe) -> torch.Tensor:
    return pipe(**tiny.call_arguments("sd3"), num_inference_steps=len(MASK))[0]


def config(**options) -> FastCacheConfig:
    return FastCacheConfig.scheduled(MASK, lead_blocks=0, **options)


@pytest.fixture(scope="module")
def pipe():
    return tiny.pipeline("sd3")


@pytest.fixture(scope="module")
def held(pipe):
    with fastcache(pipe, config()) as handle:
        request(pipe)
        return handle.report().bytes_held


def segments(handle) -> set[str]:
    return {entry.segment for entry in handle.report().ledger}


@pytest.mark.parametrize("spare, chosen", [(0, "transformer_blocks.0"), (-1, "output")])
def test_the_form_is_chosen_by_what_blocks_need(pipe, held, caplog, spare, chosen):
    with fastcache(pipe, config(memory_budget=held + spare)) as handle:
        first = request(pipe)
        assert not any(entry.skip for entry in handle.report().ledger)
        assert handle.report().bytes_held == 0
        request(pipe)
        assert segments(handle) == {chosen}
        assert sum(entry.skip for entry in handle.report().ledger) == MASK.count("0")
    assert ("standing in" in caplog.text) is (chosen == "output")
    assert torch.equal(request(pipe), first)


def test_a_share_is_one_of_the_machine(pipe):
    with fastcache(pipe, config(memory_budget=1e-9)) as handle:
        request(pipe)
        request(pipe)
        assert segments(handle) == {"output"}


def test_where_nothing_is_kept_or_stages_would_differ_it_is_refused():
    with pytest.raises(UsageError, match="leave it away"):
        FastCacheConfig(memory_budget=1e9)
    with pytest.raises(UsageError, match="not supported under PipeFusion"):
        check_cache(Layout(pipefusion_parallel_degree=2), config(memory_budget=1e9))
