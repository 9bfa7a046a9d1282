"""A program hears that a cache is on and what came of it, whether it has set up logging or not."""

import subprocess
import sys

import pytest

from fastcache_xdit import enable, fastcache
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.home import Home
from fastcache_xdit.options import meanings
from fastcache_xdit.telling import quiet, rehearsal
from tests import tiny

PROGRAM = """
from fastcache_xdit import fastcache
from tests import tiny
with fastcache(tiny.pipeline("pixart"), budget=0.5):
    pass
"""


def test_a_cache_says_what_it_is_going_to_do(caplog, tmp_path):
    pipe = tiny.pipeline("pixart")
    enable(pipe, budget=0.4, learn=2, home=Home(tmp_path)).disable()
    enable(pipe, FastCacheConfig.scheduled("1010")).disable()
    first, second = caplog.messages
    assert first.startswith("fastcache: on for PixArtTransformer2DModel: budget 0.4, planned from other models")
    assert first.endswith("; the first 2 requests are computed in full, to learn from")
    assert "schedule {4: '1010'}" in second and "granularity step" in second


def test_what_nobody_asked_for_is_not_told(caplog, tmp_path):
    with quiet(), fastcache(tiny.pipeline("pixart"), home=Home(tmp_path)):
        pass
    assert not caplog.messages


def test_a_rehearsal_is_not_remarked_on(caplog):
    pipe, config = tiny.pipeline("pixart"), FastCacheConfig.scheduled({20: "10" * 10})
    with rehearsal(), fastcache(pipe, config) as handle:
        pipe(**tiny.call_arguments("pixart"), num_inference_steps=4)
    assert not caplog.messages and not handle.report().remarks
    with quiet(), fastcache(pipe, config) as handle:
        pipe(**tiny.call_arguments("pixart"), num_inference_steps=4)
    assert "the schedule has no mask for 4 steps" in caplog.messages[0]


@pytest.mark.parametrize("setup", ["", "import logging; logging.basicConfig(level=logging.WARNING)"])
def test_it_is_heard_once(setup):
    done = subprocess.run([sys.executable, "-c", setup + PROGRAM], capture_output=True, text=True, timeout=300)
    assert done.stderr.count("fastcache: on for PixArtTransformer2DModel") == 1, done.stderr


def test_the_report_tells_seconds_and_what_they_would_have_been(tmp_path):
    pipe = tiny.pipeline("pixart")
    with fastcache(pipe, budget=0.5, learn=0, home=Home(tmp_path)) as handle:
        pipe(**tiny.call_arguments("pixart"), num_inference_steps=4)
    counters = handle.report().counters
    assert counters.seconds > 0
    assert str(counters).endswith(", 2 of 4 calls skipped, 50% of the compute, estimated 2.00x faster")


def test_every_option_has_a_meaning():
    assert set(meanings(FastCacheConfig)) == set(FastCacheConfig.model_fields)
    assert all(text.endswith(".") for text in meanings(FastCacheConfig).values())
