"""What a config makes of other numbers of steps than it was meant for is said, once."""

from __future__ import annotations

import pytest

from fastcache_xdit import FastCacheConfig, fastcache
from fastcache_xdit.runtime.remarks import on_steps
from tests import tiny

HALF = {8: "10101010"}


@pytest.mark.parametrize(
    "options, steps, words",
    [
        ({"schedule": HALF}, 8, ""),
        ({"schedule": HALF}, 16, "no mask for 16 steps: that for 8 is stretched, and computes 4 of them (25%)"),
        ({"schedule": HALF, "granularity": "output"}, 8, ""),
        (
            {"schedule": HALF, "granularity": "output"},
            17,
            "no mask for 17 steps: one is planned, with as large a share as that for 8, which computes 8 of them (47%)",
        ),
        ({"schedule": {8: "11111111"}}, 8, ""),  # as it was asked for
        ({"schedule": HALF, "warmup_steps": 8}, 8, "nothing of a request of 8 steps can be skipped"),
        ({"test": "paper"}, 8, ""),
        ({"test": "paper", "warmup_steps": 5}, 6, "6 steps can be skipped: warmup_steps=5, cooldown_steps=1"),
        ({"budget": 0.95}, 20, ""),
        ({"budget": 1}, 20, ""),
        ({"psnr": 99}, 20, ""),  # half of them until something is known
        ({}, 1, "nothing of a request of 1 steps can be skipped"),
        ({"test": "paper"}, 0, ""),  # a loop that does not count its steps
    ],
)
def test_what_is_said(options, steps, words):
    said = list(on_steps(FastCacheConfig(**options), steps))
    assert words in "".join(said) and len(said) == bool(words)


def test_it_is_logged_once_and_stays_in_the_report(caplog):
    pipe = tiny.pipeline("sd3")
    with fastcache(pipe, FastCacheConfig(schedule=HALF)) as handle:
        for _ in range(2):
            pipe(**{**tiny.call_arguments("sd3"), "num_inference_steps": 12})
    assert len(handle.report().remarks) == 1 and "for 8 is stretched" in handle.report().remarks[0]
    assert caplog.text.count("is stretched") == 1
