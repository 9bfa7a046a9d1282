"""Partial steps on real ranks where text and image attend to each other: SD3 and FLUX.1."""

from __future__ import annotations

import pytest
import torch

from tests.parallel.cached import psnr, relative
from tests.parallel.launch import run_ranks
from tests.parallel.test_tokens import BRANCHES, EVEN, MERGE, PAD, RING, TWO, ULYSSES, WHOLE, agreeing, answers, latents

TENSOR = {"tensor_parallel_degree": 2}
LAYOUTS = {
    "sd3": {"u2": ULYSSES, "ring2": RING, "u2 cfg2": {**ULYSSES, **BRANCHES}, "pp2": TWO, "u2 pp2": {**ULYSSES, **TWO}},
    "flux": {"u2": ULYSSES, "ring2": RING, "tp2": TENSOR, "tp2 u2": {**TENSOR, **ULYSSES}},
}
PLACES = [(family, name) for family, layouts in LAYOUTS.items() for name in layouts]
RUNS = {"sd3": ["pad", "reshard"], "flux": ["pad"]}
TRIPLES = [(family, name, run) for family, name in PLACES for run in RUNS[family]]
MERGED = [("sd3", "u2"), ("sd3", "ring2"), ("flux", "u2"), ("flux", "ring2")]


@pytest.fixture(scope="module")
def results() -> list[dict]:
    cases = {f"{family} one": {"family": family, "runs": {**WHOLE, **PAD, **MERGE}} for family in LAYOUTS}
    runs = {"sd3": {**WHOLE, **PAD, **EVEN}, "flux": {**WHOLE, **PAD}}
    for family, name in PLACES:
        cases[f"{family} {name}"] = {"family": family, "degrees": LAYOUTS[family][name], "runs": runs[family]}
        if (family, name) in MERGED:
            cases[f"{family} {name}"]["runs"] = {**runs[family], **MERGE}
    return run_ranks("cached_worker.py", 4, cases=cases)


@pytest.mark.parametrize("family, name", PLACES)
def test_keeping_everything_is_bit_identical_to_no_cache(results, family, name):
    case = f"{family} {name}"
    for plain, whole in zip(answers(results, case, "uncached"), answers(results, case, "all"), strict=True):
        assert whole.counts["partial_total"] == 0
        assert plain.latents is None or torch.equal(plain.latents, whole.latents)


@pytest.mark.parametrize("family, name, run", TRIPLES)
def test_ranks_that_agree_keep_equal_ledgers_with_equal_counts(results, family, name, run):
    found = answers(results, f"{family} {name}", run)
    assert all(answer.counts["partial_total"] > 0 and answer.agreed for answer in found)
    for ranks in [[0, 1, 2, 3]] if name == "tp2 u2" else agreeing(name):
        assert all(found[rank].ledger == found[ranks[0]].ledger for rank in ranks)


SAME = [("sd3", "u2", "reshard"), ("sd3", "ring2", "reshard"), ("sd3", "u2 cfg2", "reshard"), ("flux", "tp2", "pad")]
SAME += [(*place, "merge") for place in MERGED]


@pytest.mark.parametrize("family, name, run", SAME)
def test_the_latents_are_those_of_one_process(results, family, name, run):
    alone = latents(results, f"{family} one", "merge" if run == "merge" else "pad")
    assert relative(latents(results, f"{family} {name}", run), alone) < 1e-5
    assert relative(alone, latents(results, f"{family} one", "uncached")) > 5e-5, "partial steps are no whole ones"


@pytest.mark.parametrize("family, name", [(family, name) for family in LAYOUTS for name in ("u2", "ring2")])
def test_padding_computes_a_superset_of_the_tokens_of_one_process(results, family, name):
    alone = answers(results, f"{family} one", "pad")[0].kept
    first = min(alone)
    found = [answer.kept[first] for answer in answers(results, f"{family} {name}", "pad")]
    for sample, wanted in enumerate(alone[first]):
        kept = torch.cat([32 * shard + found[shard][sample] for shard in range(2)])
        assert set(wanted.tolist()) <= set(kept.tolist())


@pytest.mark.parametrize("run", ["pad", "reshard"])
def test_patches_keep_xdits_own_store_whole(results, run):
    stores = [answer.store for answer in answers(results, "sd3 pp2", run)]
    assert all(stores) and max(max(store.values()) for store in stores) == 0


@pytest.mark.parametrize("family, name, run", TRIPLES)
def test_partial_steps_stay_close(results, family, name, run):
    alone = psnr(latents(results, f"{family} one", "pad"), latents(results, f"{family} one", "uncached"))
    case = f"{family} {name}"
    assert psnr(latents(results, case, run), latents(results, case, "uncached")) > alone - 2
