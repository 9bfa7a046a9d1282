"""A rank that would decide otherwise is told apart on all ranks that must agree, instead of a hang."""

from __future__ import annotations

import pytest
import torch

from tests.parallel.launch import run_ranks

ULYSSES = {"ulysses_degree": 2}  # two replicas: ranks 0 and 1 agree, ranks 2 and 3 do
BRANCHES = {**ULYSSES, "use_cfg_parallel": True}  # all four ranks agree
STAGES = {"pipefusion_parallel_degree": 2}  # ranks 0 and 1 work on one request
VERIFY = {"verify_every": 1}
PLANNED = {"test": "plan", "learn": 2}  # by what all four ranks learn together
OPTIONS = {
    "budget": ({"error_budget": 0.2}, ULYSSES),
    "granularity": ({"granularity": "block"}, ULYSSES),
    "lead blocks": ({"lead_blocks": 2}, ULYSSES),
    "impossible lead blocks": ({"lead_blocks": 99}, ULYSSES),
    "branches": ({"cfg_agreement": False}, BRANCHES),
    "leader": ({"pp_decision": "stage"}, STAGES),
}
PLACES = {
    "after": "step 3, block transformer_blocks.1",
    "ledger": "step 4, block transformer_blocks.1",
    "track": "step 4, block transformer_blocks.1",
    "reference": "step 4, block transformer_blocks.1",
}
CASES = {
    "clean": {"degrees": ULYSSES},
    "clean branches": {"degrees": BRANCHES},
    "clean stages": {"degrees": STAGES},
    "learning": {"degrees": ULYSSES, "config": PLANNED, "differ": {"budget": 0.4}},
    "learnt": {"degrees": ULYSSES, "config": {**PLANNED, "learn": 0}, "differ": {"budget": 0.4}},
    "before": {"degrees": ULYSSES, "tamper": "before"},
    "before branches": {"degrees": BRANCHES, "tamper": "before", "config": VERIFY},
    "after": {"degrees": ULYSSES, "tamper": "after", "config": VERIFY},
    "after branches": {"degrees": BRANCHES, "tamper": "after", "config": VERIFY},
    **{name: {"degrees": ULYSSES, "tamper": name} for name in ("ledger", "track", "reference")},
    "track branches": {"degrees": BRANCHES, "tamper": "track"},
    **{f"options {name}": {"degrees": on, "differ": differ} for name, (differ, on) in OPTIONS.items()},
}


@pytest.fixture(scope="module")
def results() -> list[dict]:
    return run_ranks("divergence_worker.py", 4, cases=CASES)


def raised(results: list[dict], name: str) -> list[str | None]:
    return [result[name]["raised"] for result in results]


@pytest.mark.parametrize("name", PLACES)
def test_both_ranks_of_the_replica_raise_and_the_other_replica_goes_on(results, name):
    told = raised(results, name)
    assert told[0] == told[1]
    assert "diverged between ranks [0] and ranks [1]" in told[0]
    assert f"at {PLACES[name]};" in told[0]
    assert told[2:] == [None, None]
    assert results[2][name]["answer"].choices == results[2]["clean"]["answer"].choices


@pytest.mark.parametrize("name", ["after", "track"])
def test_all_ranks_that_agree_over_branches_raise(results, name):
    told = raised(results, f"{name} branches")
    assert len(set(told)) == 1
    assert "diverged between ranks [0, 2, 3] and ranks [1]" in told[0]
    assert f"at {PLACES[name]};" in told[0]


@pytest.mark.parametrize("name", OPTIONS)
def test_different_options_are_told_before_the_first_step(results, name):
    told = raised(results, f"options {name}")
    group = [0, 1, 2, 3] if OPTIONS[name][1] is BRANCHES else [0, 1]
    others = [rank for rank in group if rank != 1]
    for rank in group:
        assert f"diverged between ranks {others} and ranks [1]" in told[rank]
        assert "enabled with different options" in told[rank]
    assert [told[rank] for rank in range(4) if rank not in group] == [None] * (4 - len(group))


@pytest.mark.parametrize("name", ["learning", "learnt"])
def test_replicas_that_learn_together_are_told_as_well(results, name):
    assert all("between ranks [0, 2, 3] and ranks [1]" in told for told in raised(results, name))


@pytest.mark.parametrize("name", ["before", "before branches"])
def test_wrong_sums_on_the_way_in_lead_to_the_same_decisions_everywhere(results, name):
    assert raised(results, name) == [None] * 4
    replica = [result[name]["answer"] for result in (results if "branches" in name else results[:2])]
    assert all(answer.ledger == replica[0].ledger and answer.agreed for answer in replica)
    clean = results[0][name.replace("before", "clean").strip()]["answer"]
    assert replica[0].ledger != clean.ledger


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("clean")])
def test_the_next_request_is_clean(results, name):
    kind = {str(ULYSSES): "clean", str(BRANCHES): "clean branches", str(STAGES): "clean stages"}
    for result in results:
        mine, clean = result[name]["next"], result[kind[str(CASES[name]["degrees"])]]["next"]
        assert mine.ledger == clean.ledger
        assert mine.latents is clean.latents is None or torch.equal(mine.latents, clean.latents)
