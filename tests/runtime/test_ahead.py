"""`sync: ahead`: a step is decided from what was exchanged while the step before it computed."""

from __future__ import annotations

import math

import pytest

from fastcache_xdit import FastCacheConfig, fastcache
from tests import tiny

STEPS = 8
WHOLE = {"test": "paper", "error_budget": 0}  # decides at each step, and skips none


def ledger(pipe, **options):
    with fastcache(pipe, FastCacheConfig(**options)) as handle:
        pipe(**tiny.call_arguments("flux"), num_inference_steps=STEPS)
        return handle.report().ledger


@pytest.fixture(scope="module")
def pipe():
    return tiny.pipeline("flux")


def test_a_decision_sees_the_change_of_the_step_before(pipe):
    seen = [entry.change for entry in ledger(pipe, **WHOLE)]
    ahead = ledger(pipe, **WHOLE, sync="ahead")
    assert [entry.change for entry in ahead] == [math.inf, math.inf, *seen[1:-1]]
    assert [entry.reason for entry in ahead[:3]] == ["no reference", "no reference", "warm-up"]


def test_a_change_grows_with_the_steps_since_the_reference(pipe):
    options = {"test": "paper", "error_budget": 1e6, "max_consecutive_skips": 9, "lead_blocks": 0}
    seen, ahead = ledger(pipe, **options), ledger(pipe, **options, sync="ahead")
    first = next(entry.step for entry in seen if entry.skip)
    assert [entry.skip for entry in ahead] == [entry.skip for entry in seen]
    assert ahead[first].change == pytest.approx(seen[first - 1].change)
    assert ahead[first + 1].change == pytest.approx(2 * seen[first].change)  # two steps behind its reference, not one


def test_blocks_run_between_a_question_and_its_answer(pipe):
    log = []
    with fastcache(pipe, FastCacheConfig(**WHOLE, sync="ahead")) as handle:
        consensus = handle._session.record.consensus
        agree_later = consensus.agree_later

        def noted(sums, stamp, place):
            log.append(f"asked at {place.split(',')[0]}")
            arrive = agree_later(sums, stamp, place)
            return lambda: (log.append(f"answered {place.split(',')[0]}"), arrive())[1]

        consensus.agree_later = noted
        hook = pipe.transformer.transformer_blocks[-1].register_forward_pre_hook(lambda *_: log.append("computed"))
        pipe(**tiny.call_arguments("flux"), num_inference_steps=STEPS)
        hook.remove()
    expected = [["asked at step 0", "computed"]]
    expected += [[f"answered step {step - 1}", f"asked at step {step}", "computed"] for step in range(1, STEPS - 1)]
    expected += [[f"answered step {STEPS - 2}", "computed"]]
    assert log == [line for lines in expected for line in lines]
