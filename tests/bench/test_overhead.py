"""`bench overhead`: what the cache takes of a request's time, whether blocks or whole calls are skipped."""

import pytest

from fastcache_xdit.bench.overhead import overhead, overhead_of_outputs, overhead_of_plan
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.tuning.calls import PipelineCall
from fastcache_xdit.tuning.runner import Runner
from tests import tiny

MASK = "1010"


@pytest.fixture(scope="module")
def measured():
    runner = Runner(tiny.pipeline("flux"))
    call = PipelineCall({**tiny.call_arguments("flux"), "num_inference_steps": len(MASK)}, 0)
    return {
        "blocks": overhead(runner, call, FastCacheConfig.scheduled(MASK, lead_blocks=0)),
        "outputs": overhead_of_outputs(runner, call, FastCacheConfig.scheduled(MASK, granularity="output")),
        "plan": overhead_of_plan(runner, call),
    }


def test_the_parts_are_told_and_add_up(measured):
    assert list(measured["blocks"]) == ["deciding", "standing in", "keeping", "all"]
    assert list(measured["outputs"]) == ["planning", "standing in", "all"]
    assert list(measured["plan"]) == ["planning", "standing in", "all", "recording"]
    for parts in measured.values():
        assert parts["all"] == pytest.approx(sum(parts.values()) - parts["all"] - parts.get("recording", 0))


def test_all_that_was_used_took_some_time(measured):
    assert all(share > 0 for kind, parts in measured.items() for name, share in parts.items() if name != "deciding")
