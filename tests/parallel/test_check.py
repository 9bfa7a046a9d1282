"""The check of a request: ranks of a layout compute the same planned skips as one process does, and none alone."""

from __future__ import annotations

import math

import pytest
import torch

from tests.parallel.cached import STEPS, Answer, relative
from tests.parallel.launch import run_ranks

CLOSE = 1e-5  # relative
CLEAR = 0.01  # relative distance of errors from the check; layouts differ by rounding
PLAN = {"test": "plan", "learn": 0}
CHECKS = {"plan": 0.0, "some": 0.07, "all": 1e-9}
RUNS = {name: {"config": {**PLAN, "check": check}, "batch": 2} for name, check in CHECKS.items()}
LAYOUTS = {"u2": {"ulysses_degree": 2}, "cfg2": {"use_cfg_parallel": True}}


@pytest.fixture(scope="module")
def results() -> list[dict]:
    cases = {"one": {"family": "pixart", "runs": {**RUNS, "uncached": {"batch": 2}}}}
    cases |= {name: {"family": "pixart", "degrees": degrees, "runs": RUNS} for name, degrees in LAYOUTS.items()}
    return run_ranks("cached_worker.py", 2, cases=cases)


def answers(results: list[dict], case: str, run: str) -> list[Answer]:
    return [result[case][run] for result in results]


def latents(results: list[dict], case: str, run: str) -> torch.Tensor:
    return next(answer.latents for answer in answers(results, case, run) if answer.latents is not None)


def test_one_process_computes_some_of_the_planned_skips(results):
    skipped = {run: answers(results, "one", run)[0].counts["approximated_total"] for run in RUNS}
    assert skipped["plan"] > skipped["some"] > skipped["all"] == 0
    assert torch.equal(latents(results, "one", "all"), latents(results, "one", "uncached"))
    errors = [entry.predicted_error for entry in answers(results, "one", "some")[0].ledger if entry.predicted_error]
    assert min(abs(error / CHECKS["some"] - 1) for error in errors if math.isfinite(error)) > CLEAR


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_ranks_decide_alike_and_as_one_process(results, name, run):
    alone, found = answers(results, "one", run)[0], answers(results, name, run)
    assert found[0].ledger == found[1].ledger and all(answer.agreed for answer in found)
    assert found[0].choices == alone.choices
    assert relative(latents(results, name, run), latents(results, "one", run)) < CLOSE


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_check_is_one_message_before_each_planned_skip_that_follows_a_computed_step(results, name):
    """And every request ends with one; a plan without a check has no other."""
    for answer in answers(results, name, "plan"):
        assert answer.counts["collectives"] == 1
    planned = [entry.step for entry in answers(results, name, "plan")[0].ledger if entry.skip]
    for answer in answers(results, name, "all"):
        assert len(answer.ledger) == STEPS
        assert answer.counts["collectives"] == 1 + sum(step > 1 for step in planned)
