"""Partial steps on real ranks: equal counts, the tokens of one process, and its latents."""

from __future__ import annotations

import pytest
import torch

from tests.parallel.cached import Answer, psnr, relative
from tests.parallel.launch import run_ranks

STEPS = 6
LONE = {"test": "none", "max_consecutive_skips": STEPS, "warmup_steps": 1, "cooldown_steps": 0}
PART = {"keep_ratio": 0.25, "bucket": 2}
# where no test objects but the schedule: the first step and the last are whole, and one in between
MASK = {"schedule": {STEPS: "11p1pp"}, **LONE}


def run(config: dict) -> dict:
    return {"config": config, "steps": STEPS}


PAD = {"pad": {**run({**MASK, "tokens": PART}), "twice": True}}
EVEN = {"reshard": run({**MASK, "tokens": {**PART, "balance": "reshard"}})}
MORE = {
    "threshold": run({**MASK, "tokens": {"threshold": 3e-4, "bucket": 2, "min_static_ratio": 0}}),
    "significant": {
        **run({"test": "paper", "error_budget": 1e9, "warmup_steps": 2, "tokens": PART}),
        "objecting": True,
    },
    "drop": run({**MASK, "tokens": {**PART, "static_kv": "drop"}}),
}
MERGE = {
    "merge": run({**MASK, "tokens": {"merge_ratio": 0.75, "merge_window": 16}}),
    "merge ratio 1": run({**MASK, "tokens": {"merge_ratio": 1.0}}),
}
DROP = {"drop, reshard": run({**MASK, "tokens": {**PART, "static_kv": "drop", "balance": "reshard"}})}
EDIT = {
    "region": run({**MASK, "tokens": {"score": "region", "bucket": 2}}),
    "region, reshard": run({**MASK, "tokens": {"score": "region", "bucket": 2, "balance": "reshard"}}),
}
WHOLE = {
    "uncached": {"steps": STEPS},
    "all": run({**MASK, "tokens": {"keep_ratio": 1.0}}),
    "threshold 0": run({**MASK, "tokens": {"threshold": 0}}),
}
ULYSSES, RING, TWO = {"ulysses_degree": 2}, {"ring_degree": 2}, {"pipefusion_parallel_degree": 2}
BRANCHES = {"use_cfg_parallel": True}
FLAT = {"u2": ULYSSES, "ring2": RING, "cfg2": BRANCHES, "u2 cfg2": {**ULYSSES, **BRANCHES}}
STAGES = {"pp2": TWO, "u2 pp2": {**ULYSSES, **TWO}, "ring2 pp2, late": {**RING, **TWO, "warmup_steps": 4}}
STAGES["pp2, never"] = {**TWO, "warmup_steps": STEPS}  # "late" and "never": when patches take over from whole sequences
SAME = [("reshard", "pad"), ("merge", "merge"), ("drop, reshard", "drop"), ("region, reshard", "region")]
SHARDS = ["u2", "ring2", "u2 cfg2"]
FLAT_RUNS = ["pad", "threshold", "significant", "region"]


@pytest.fixture(scope="module")
def results() -> list[dict]:
    cases = {"one": {"family": "pixart", "runs": {**WHOLE, **PAD, **MORE, **MERGE, **EDIT}}}
    for name, degrees in FLAT.items():
        cases[name] = {
            "family": "pixart",
            "degrees": degrees,
            "runs": {**WHOLE, **PAD, **EVEN, **MORE, **MERGE, **DROP, **EDIT},
        }
    staged = {**WHOLE, **PAD, **EVEN, "significant": MORE["significant"]}
    for name, degrees in STAGES.items():
        cases[name] = {"family": "pixart", "degrees": degrees, "runs": staged}
    return run_ranks("cached_worker.py", 4, cases=cases)


def answers(results: list[dict], case: str, name: str) -> list[Answer]:
    return [result[case][name] for result in results]


def latents(results: list[dict], case: str, name: str) -> torch.Tensor:
    return next(answer.latents for answer in answers(results, case, name) if answer.latents is not None)


def agreeing(case: str) -> list[list[int]]:
    """Ranks of one stage and replica."""
    pairs = {"pp2": [], "pp2, never": [], "u2 cfg2": [[0, 1, 2, 3]]}
    return pairs.get(case, [[0, 1], [2, 3]])


KEPT = [(case, name) for case in [*FLAT, *STAGES] for name in ("all", "threshold 0")]


@pytest.mark.parametrize("case, name", [*KEPT, *((case, "merge ratio 1") for case in FLAT)])
def test_keeping_everything_is_bit_identical_to_no_cache(results, case, name):
    for plain, whole in zip(answers(results, case, "uncached"), answers(results, case, name), strict=True):
        assert whole.counts["partial_total"] == 0
        assert (plain.latents is None) == (whole.latents is None)
        assert plain.latents is None or torch.equal(plain.latents, whole.latents)


@pytest.mark.parametrize("case", [*FLAT, *STAGES])
@pytest.mark.parametrize("name", ["pad", "reshard", "significant"])
def test_ranks_that_agree_keep_equal_ledgers_with_equal_counts(results, case, name):
    found = answers(results, case, name)
    assert all(answer.counts["partial_total"] > 0 and answer.agreed for answer in found)
    for ranks in agreeing(case):
        assert all(found[rank].ledger == found[ranks[0]].ledger for rank in ranks)
        assert any(entry.tokens for entry in found[ranks[0]].ledger)


@pytest.mark.parametrize("case", FLAT)
@pytest.mark.parametrize("name", FLAT_RUNS)
def test_every_layout_takes_the_decisions_of_one_process(results, case, name):
    def choices(answer: Answer) -> list[tuple]:
        return [(entry.step, entry.skip) for entry in answer.ledger]

    alone = choices(answers(results, "one", name)[0])
    assert [choices(answer) == alone for answer in answers(results, case, name)] == [True] * 4


@pytest.mark.parametrize("case", SHARDS)
@pytest.mark.parametrize("name", FLAT_RUNS)
def test_padding_computes_a_superset_of_the_tokens_of_one_process(results, case, name):
    """At the first partial step; later ones start from states that more computing has changed."""
    alone = answers(results, "one", name)[0].kept
    first = min(alone)
    found = [answer.kept for answer in answers(results, case, name)]
    for row, wanted in enumerate(alone[first]):
        sample = row % len(found[0][first])
        shards = [shard * 32 + found[shard][first][sample] for shard in range(2)]
        assert set(wanted.tolist()) <= set(torch.cat(shards).tolist())
    assert len({kept[first].shape for kept in found}) == 1


@pytest.mark.parametrize("case", FLAT)
@pytest.mark.parametrize("name, same", SAME)
def test_the_latents_are_those_of_one_process(results, case, name, same):
    alone = latents(results, "one", same)
    assert relative(latents(results, case, name), alone) < 1e-5
    assert relative(alone, latents(results, "one", "uncached")) > 5e-5, "partial steps are no whole ones"


@pytest.mark.parametrize("name", ["pad", "threshold"])
def test_branches_on_ranks_of_their_own_keep_the_same_tokens_as_one_process(results, name):
    assert relative(latents(results, "cfg2", name), latents(results, "one", name)) < 1e-5
    alone = answers(results, "one", name)[0].kept
    for answer in answers(results, "cfg2", name):
        assert {key: len(index) for key, index in answer.kept.items()} == dict.fromkeys(alone, 1)
        assert all(torch.equal(index, alone[key][:1]) for key, index in answer.kept.items())


@pytest.mark.parametrize("case", ["u2", "ring2"])
def test_resharded_keys_and_values_are_those_of_one_process(results, case):
    alone = answers(results, "one", "pad")[0].rows
    for rank, answer in enumerate(answers(results, case, "reshard")):
        assert answer.rows.keys() == alone.keys() and alone
        for key, rows in answer.rows.items():
            mine = alone[key].chunk(2, dim=1)[rank % 2]
            torch.testing.assert_close(rows, mine, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["pad", "reshard"])
def test_patches_keep_xdits_own_store_whole(results, name):
    stores = [answer.store for answer in answers(results, "pp2", name)]
    assert all(stores) and max(max(store.values()) for store in stores) == 0


@pytest.mark.parametrize("case", ["one", *FLAT, *STAGES])
def test_a_request_leaves_nothing_for_the_next_one(results, case):
    for answer in answers(results, case, "pad"):
        assert answer.latents is None or torch.equal(answer.latents, answer.again)


@pytest.mark.parametrize("name", ["pad", "reshard", "significant"])
@pytest.mark.parametrize("case", [*FLAT, *STAGES])
def test_partial_steps_stay_close(results, case, name):
    alone = psnr(latents(results, "one", "pad"), latents(results, "one", "uncached"))
    mine = psnr(latents(results, case, name), latents(results, case, "uncached"))
    assert mine > (40 if name == "significant" else alone - 2), (mine, alone)


@pytest.mark.parametrize("name", ["pad", "threshold"])
@pytest.mark.parametrize("case", ["u2", "ring2"])
def test_one_message_for_each_partial_step(results, case, name):
    for answer in answers(results, case, name):
        assert answer.counts["collectives"] == 3 + 1
