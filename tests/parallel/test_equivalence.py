"""Layouts without pipeline stages take the decisions of one process and give its latents, with blocks being skipped."""

from __future__ import annotations

import pytest
import torch

from tests.parallel.cached import NOTHING, STEPS, Answer, clearance, relative
from tests.parallel.launch import run_ranks

CLOSE = 1e-5  # relative; one skip changes the latents thirty times as much
CLOSE_ROUNDED = 1e-3  # where references are rounded to bfloat16, a few of them the other way
CLEAR = 0.01  # relative distance of statistics from the budget; layouts differ by rounding, about 1e-6

STEP = {"config": {}}
GROUP = {"config": {"granularity": "group", "groups": 3}}
BLOCK = {"config": {"granularity": "block", "sync": "block"}}
AT_ONCE = {"config": {"granularity": "block"}}
APART = {"config": {"cfg_agreement": False}}
ROUNDED = {"config": {"reference_dtype": "bfloat16"}}
AHEAD = {"config": {"sync": "ahead"}}
RUNS = {
    "pixart": {
        "step": STEP,
        "group": GROUP,
        "block": BLOCK,
        "blocks at once": AT_ONCE,
        "branches apart": APART,
        "ahead": AHEAD,
    },
    "sd3": {"step": STEP, "group, sync block": {"config": {**GROUP["config"], "sync": "block"}}},
    "flux": {"step": STEP, "group": GROUP, "block": BLOCK, "rounded": ROUNDED},
    "wan": {"step": STEP, "block": BLOCK, "branches apart": APART, "ahead": AHEAD},
}
ULYSSES, TENSOR = {"ulysses_degree": 2}, {"tensor_parallel_degree": 2}
LAYOUTS = {
    "pixart": {
        "u2": ULYSSES,
        "ring2": {"ring_degree": 2},
        "cfg2": {"use_cfg_parallel": True},
        "u2 cfg2": {**ULYSSES, "use_cfg_parallel": True},
    },
    "sd3": {"u2 cfg2": {**ULYSSES, "use_cfg_parallel": True}},
    "flux": {"u2": ULYSSES, "tp2": TENSOR, "tp2 u2": {**ULYSSES, **TENSOR}},
    "wan": {"u2": ULYSSES, "u2 ring2": {**ULYSSES, "ring_degree": 2}},
}
ZERO = {"uncached": {}, "nothing": NOTHING}
PLACES = [(family, name) for family, layouts in LAYOUTS.items() for name in layouts]
TRIPLES = [(family, name, run) for family, name in PLACES for run in RUNS[family]]
SEGMENTS = {
    "step": 1,
    "ahead": 1,
    "rounded": 1,
    "group": 1,
    "block": 7,
    "blocks at once": 1,
    "branches apart": 1,
    "group, sync block": 3,
}
REPLICAS = {"seed": [3, 4], "steps": [STEPS, STEPS + 3]}


@pytest.fixture(scope="module")
def results() -> list[dict]:
    cases = {f"{family} one": {"family": family, "runs": runs} for family, runs in RUNS.items()}
    for family, name in PLACES:
        cases[f"{family} {name}"] = {
            "family": family,
            "degrees": LAYOUTS[family][name],
            "runs": {**RUNS[family], **ZERO},
        }
    alone = {f"replica {i}": {**STEP, "seed": REPLICAS["seed"][i], "steps": REPLICAS["steps"][i]} for i in range(2)}
    cases["alone"] = {"family": "pixart", "runs": alone}
    cases["replicas"] = {"family": "pixart", "degrees": ULYSSES, "runs": {"both": {**STEP, **REPLICAS}}}
    return run_ranks("cached_worker.py", 4, cases=cases)


def answers(results: list[dict], case: str, run: str) -> list[Answer]:
    return [result[case][run] for result in results]


def latents(results: list[dict], case: str, run: str) -> torch.Tensor:
    return next(answer.latents for answer in answers(results, case, run) if answer.latents is not None)


def decisions(answer: Answer) -> list[tuple]:
    """Without the branch: in one process xDiT runs diffusers' FLUX.1, which names the only branch that it has."""
    return [(step, segment, *choice) for step, _, _, segment, *choice in answer.choices]


@pytest.mark.parametrize("family, run", [(family, run) for family, runs in RUNS.items() for run in runs])
def test_one_process_skips_a_good_share_and_no_decision_is_marginal(results, family, run):
    answer = answers(results, f"{family} one", run)[0]
    assert answer.share > 0.2
    assert clearance(answer) > CLEAR


@pytest.mark.parametrize("family, name, run", TRIPLES)
def test_every_rank_takes_the_decisions_of_one_process(results, family, name, run):
    if run == "branches apart" and "cfg2" in name:
        pytest.skip("CFG branches decide for themselves here")
    alone = decisions(answers(results, f"{family} one", run)[0])
    assert [decisions(answer) == alone for answer in answers(results, f"{family} {name}", run)] == [True] * 4


@pytest.mark.parametrize("family, name, run", TRIPLES)
def test_latents_are_those_of_one_process(results, family, name, run):
    error = relative(latents(results, f"{family} {name}", run), latents(results, f"{family} one", run))
    if run == "rounded":
        assert error < CLOSE_ROUNDED
    else:
        assert error < (1e-2 if run == "branches apart" and "cfg2" in name else CLOSE)


@pytest.mark.parametrize("family, name", PLACES)
def test_a_budget_of_zero_is_bit_identical_to_no_cache(results, family, name):
    for plain, zero in zip(*(answers(results, f"{family} {name}", run) for run in ZERO), strict=True):
        assert zero.share == 0
        assert (plain.latents is None) == (zero.latents is None)
        assert plain.latents is None or torch.equal(zero.latents, plain.latents)


@pytest.mark.parametrize("family, name, run", TRIPLES)
def test_ranks_exchange_one_message_per_decision_and_one_at_the_end(results, family, name, run):
    calls = 2 if family == "wan" else 1  # of a step: one for each branch of guidance, which follow each other
    steps = STEPS - (run == "ahead")  # the last one tells nobody how far it moved
    expected = steps * SEGMENTS[run] * (calls if run == "branches apart" else 1) + calls
    if run == "branches apart" and name == "cfg2":
        expected = 0  # nobody is left to agree with
    counted = [answer.counts["collectives"] for answer in answers(results, f"{family} {name}", run)]
    assert counted == [expected] * 4


@pytest.mark.parametrize("family", RUNS)
def test_one_process_exchanges_nothing(results, family):
    for run in RUNS[family]:
        assert [answer.counts["collectives"] for answer in answers(results, f"{family} one", run)] == [0] * 4


def test_agreement_is_reported_at_the_end(results):
    assert all(answer.agreed for answer in answers(results, "pixart u2 cfg2", "step"))


def test_data_parallel_replicas_decide_for_themselves(results):
    """They run requests of different length: a collective between them would fail or never end."""
    found = answers(results, "replicas", "both")
    for rank, replica in enumerate([0, 0, 1, 1]):
        alone = answers(results, "alone", f"replica {replica}")[0]
        assert found[rank].choices == alone.choices
        assert found[rank].latents is None or relative(found[rank].latents, alone.latents) < CLOSE
        assert found[rank].counts["collectives"] == REPLICAS["steps"][replica] + 1
        assert clearance(alone) > CLEAR
    assert found[0].choices != found[2].choices
    assert [answer.latents is not None for answer in found] == [False, True, False, True]
