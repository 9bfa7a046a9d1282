"""Ranks on GPUs: over NCCL with one on each, over Gloo where they share one. Nothing but that differs."""

from __future__ import annotations

import os

import pytest
import torch

from tests.parallel import place
from tests.parallel.cached import relative
from tests.parallel.launch import run_ranks

RANKS = int(os.environ.get("FASTCACHE_TEST_RANKS", 2))
CLOSE = 1e-4  # relative; sums on a GPU are taken in other orders
RUNS = {"uncached": {}, "step": {"config": {}}, "block": {"config": {"granularity": "block"}}}
LAYOUTS = {
    "u2": {"ulysses_degree": 2},
    "cfg2": {"use_cfg_parallel": True},
    "pp2": {"pipefusion_parallel_degree": 2},
}

pytestmark = pytest.mark.skipif(
    "FASTCACHE_TEST_RANKS" not in os.environ and not torch.cuda.is_available(), reason="needs an NVIDIA GPU"
)


@pytest.fixture(scope="module")
def results():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(place.VARIABLE, "cuda" if torch.cuda.is_available() else "cpu")
        cases = {
            name: {"family": "pixart", "runs": RUNS, "degrees": degrees}
            for name, degrees in {"alone": {}, **LAYOUTS}.items()
        }
        return run_ranks("cached_worker.py", RANKS, cases=cases)


@pytest.mark.parametrize("run", ["step", "block"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_ranks_decide_alike(results, name, run):
    for result in results:
        answer = result[name][run]
        assert answer.agreed is not False and any(entry.skip for entry in answer.ledger)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("name", ["u2", "cfg2"])
def test_latents_are_those_of_one_process(results, name, run):
    alone = results[0]["alone"][run].latents
    for result in results:
        found = result[name][run]
        if found.latents is not None:
            assert relative(found.latents, alone) < CLOSE
            assert found.choices == result["alone"][run].choices
