"""One calibration file for every layout: fits do not depend on the layout that measured them, nor latents on ranks.

PipeFusion that never leaves its warm-up works on whole sequences, and is as exact as the others: what its stages add in
place of their blocks is together what one process adds.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.approx.fit import Places, fit
from fastcache_xdit.approx.forms import FORMS
from fastcache_xdit.decision.schedule import uniform_mask
from fastcache_xdit.tuning.calibrate import TRIED
from tests.parallel.cached import STEPS, Answer, psnr, relative
from tests.parallel.calibrated_worker import GUIDANCE
from tests.parallel.launch import run_ranks

CLOSE = 1e-4  # relative
ULYSSES, BRANCHES = {"ulysses_degree": 2}, {"use_cfg_parallel": True}
SERVED = {
    "one": {},
    "u2": ULYSSES,
    "cfg2": BRANCHES,
    "u2 cfg2": {**ULYSSES, **BRANCHES},
    "pp2": {"pipefusion_parallel_degree": 2},
    "pp2 whole": {"pipefusion_parallel_degree": 2, "warmup_steps": STEPS},
    "pp4 whole": {"pipefusion_parallel_degree": 4, "warmup_steps": STEPS},
}
STAGED = ("pp2", "pp2 whole", "pp4 whole")
MEASURED = ("one", "u2", "cfg2")
MASK = uniform_mask(STEPS, 5)
RUNS = ("scheduled", "calibrated test", "partial")
PART = {"keep_ratio": 0.25, "bucket": 2, "static_kv": "forecast", "balance": "reshard"}
FREE = {"warmup_steps": 1, "cooldown_steps": 0, "max_consecutive_skips": 9, "error_budget": 1e9}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("calibrations")


@pytest.fixture(scope="module")
def results(folder) -> list[dict[str, dict[str, Answer]]]:
    file = {"calibration": str(folder / "one.safetensors"), "stand_in": "delta+history", **FREE}
    configs = {
        "scheduled": {**file, "test": "none", "schedule": {STEPS: MASK}},
        "calibrated test": {**file, "test": "calibrated", "tolerance": 0.001, "granularity": "step"},
        "partial": {**file, "test": "none", "schedule": {STEPS: MASK.replace("0", "p", 2)}, "tokens": PART},
        "history": {**file, "stand_in": "history", "test": "none", "schedule": {STEPS: MASK}},
        "taylor1": {**FREE, "test": "none", "schedule": {STEPS: MASK}},
    }
    served = {name: degrees for name, degrees in SERVED.items() if name not in STAGED}
    calibrated = {name: SERVED[name] for name in MEASURED}
    arguments = {"folder": str(folder), "calibrated": calibrated}
    flat = run_ranks("calibrated_worker.py", 4, **arguments, served=served, configs=configs)
    served = {name: SERVED[name] for name in STAGED}
    arguments = {"folder": str(folder), "calibrated": {}, "served": served, "configs": configs}
    staged_results = run_ranks("calibrated_worker.py", 4, **arguments)
    return [mine | theirs for mine, theirs in zip(flat, staged_results, strict=True)]


def latents(results, name: str, run: str) -> torch.Tensor:
    return next(result[name][run].latents for result in results if result[name][run].latents is not None)


# The branches of guidance round differently on two ranks, which nearly collinear features amplify.
@pytest.mark.parametrize("name, close", [("u2", 1e-3), ("cfg2", 2e-2)])
def test_fits_of_two_ranks_equal_those_of_one(results, folder, name, close):
    alone, shared = (Calibration.load(folder / f"{each}.safetensors") for each in ("one", name))
    assert alone.moments.keys() == shared.moments.keys()
    places = Places(torch.tensor([4, 6, 9]), torch.tensor([[3, 1, 0], [4, 2, 0], [7, 5, 2]]))
    for segment in alone.moments:
        found = [fit(FORMS["history"], *each.moments[segment]["hidden_states"], places) for each in (alone, shared)]
        torch.testing.assert_close(found[1].relative_error, found[0].relative_error, rtol=1e-2, atol=0)
        torch.testing.assert_close(found[1].coefficients, found[0].coefficients, rtol=1e-2, atol=close)
    assert shared.spread.keys() == alone.spread.keys()
    for found in (alone, shared):
        assert {(each.length, each.floor) for each in found.coherence} <= set(TRIED)
        assert [each.reach for each in found.coherence] == [3, 5, 7, math.inf]


@pytest.mark.parametrize("name", MEASURED)
def test_guidance_is_measured_in_one_batch_and_over_two_ranks(results, folder, name):
    (guidance,) = Calibration.load(folder / f"{name}.safetensors").facts["guidance"]
    assert guidance["weights"] == pytest.approx([1 - GUIDANCE, GUIDANCE], abs=1e-3)
    assert guidance["residual"] < 1e-3


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("name", ["u2", "cfg2", "u2 cfg2", "pp2 whole", "pp4 whole"])
def test_layouts_give_the_latents_of_one_process(results, name, run):
    assert relative(latents(results, name, run), latents(results, "one", run)) < CLOSE
    choices = {name: [entry.skip for entry in results[0][name][run].ledger] for name in ("one", name)}
    assert choices[name] == choices["one"] and any(choices["one"])


@pytest.mark.parametrize("run", ["scheduled", "history", "taylor1"])
@pytest.mark.parametrize("name", SERVED)
def test_a_schedule_costs_no_message_but_the_last(results, name, run):
    for result in results:
        answer = result[name][run]
        assert [entry.skip for entry in answer.ledger if entry.patch in (None, 0)] == [mark == "0" for mark in MASK]
        assert answer.counts["collectives"] <= 1 and answer.counts["headers"] == 0


@pytest.mark.parametrize("name", SERVED)
def test_fitted_stand_ins_beat_the_one_that_nobody_fitted(results, name):
    truth = latents(results, name, "uncached")
    quality = {run: psnr(latents(results, name, run), truth) for run in ("scheduled", "history", "taylor1")}
    assert min(quality["scheduled"], quality["history"]) > quality["taylor1"] + 0.5, quality
