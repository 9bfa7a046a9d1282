"""PipeFusion: bit-identical where nothing may be skipped, and hardly worse than one process where blocks are."""

from __future__ import annotations

import pytest
import torch

from tests.parallel.cached import NOTHING, STEPS, Answer, clearance, psnr
from tests.parallel.launch import run_ranks

# dB that a layout with stages may lose against one process, each against itself uncached. Nearly all of the loss comes
# from the keys and values of skipped patches, which are a forecast where they would have been one step old
LOSS = 2.0

AMPLE = {"error_budget": 1e6}  # at which every layout skips the same steps, so that only the stages make a difference
TWO, FOUR = {"pipefusion_parallel_degree": 2}, {"pipefusion_parallel_degree": 4}
ULYSSES, BRANCHES = {"ulysses_degree": 2}, {"use_cfg_parallel": True}
LAYOUTS = {
    "pixart": {
        "pp2": TWO,
        "pp4": FOUR,
        "u2 pp2": {**ULYSSES, **TWO},
        "pp2 cfg2": {**TWO, **BRANCHES},
        "ring2 pp2": {"ring_degree": 2, **TWO},
    },
    "sd3": {"pp2": TWO, "u2 pp2": {**ULYSSES, **TWO}, "pp2 cfg2": {**TWO, **BRANCHES}},
    "flux": {"pp2": TWO, "pp4": FOUR, "u2 pp2": {**ULYSSES, **TWO}},
}
PLACES = [(family, name) for family, layouts in LAYOUTS.items() for name in layouts]
RUNS = {
    "uncached": {},
    "nothing": NOTHING,
    "nothing planned": {"config": {"test": "plan", "budget": 1, "learn": 0}},
    "stage": {"config": {**AMPLE, "pp_decision": "stage"}},
    "leader": {"config": {**AMPLE, "pp_decision": "leader"}},
}
GROUPS = {"groups": {"config": {**AMPLE, "granularity": "group", "groups": 2, "sync": "block", "pp_decision": "stage"}}}
# between what the two stages of PixArt have seen by the seventh step
APART_AT = {"error_budget": 0.1659, "lead_blocks": 0, "max_consecutive_skips": 9}
APART = {
    "split": {"config": {**APART_AT, "pp_decision": "stage"}},
    "split, leader": {"config": {**APART_AT, "pp_decision": "leader"}},
}
AHEAD = {"ahead": {"config": {**AMPLE, "sync": "ahead"}}}
SKIPPING = ("stage", "leader")


@pytest.fixture(scope="module")
def results() -> list[dict]:
    alone = {name: RUNS[name] for name in ("uncached", "stage")}
    cases = {f"{family} one": {"family": family, "runs": {**alone, **GROUPS}} for family in LAYOUTS}
    for family, name in PLACES:
        runs = {**RUNS, **(GROUPS if name == "pp2" else {}), **(APART if (family, name) == ("pixart", "pp2") else {})}
        runs |= AHEAD if name == "pp2 cfg2" else {}
        cases[f"{family} {name}"] = {"family": family, "degrees": LAYOUTS[family][name], "runs": runs}
    return run_ranks("cached_worker.py", 4, cases=cases)


def answers(results: list[dict], case: str, run: str) -> list[Answer]:
    return [result[case][run] for result in results]


def quality(results: list[dict], case: str, run: str) -> float:
    pairs = zip(answers(results, case, run), answers(results, case, "uncached"), strict=True)
    return min(psnr(mine.latents, plain.latents) for mine, plain in pairs if mine.latents is not None)


@pytest.mark.parametrize("run", ["nothing", "nothing planned"])
@pytest.mark.parametrize("family, name", PLACES)
def test_where_nothing_may_be_skipped_every_bit_is_that_of_no_cache(results, family, name, run):
    case = f"{family} {name}"
    for plain, zero in zip(answers(results, case, "uncached"), answers(results, case, run), strict=True):
        assert zero.share == 0
        assert (plain.latents is None) == (zero.latents is None)
        assert plain.latents is None or torch.equal(zero.latents, plain.latents)


@pytest.mark.parametrize("run", SKIPPING)
@pytest.mark.parametrize("family, name", PLACES)
def test_stages_skip_and_lose_little(results, family, name, run):
    case = f"{family} {name}"
    shares = [answer.share for answer in answers(results, case, run)]
    assert min(shares) > 0.15
    assert quality(results, case, run) > quality(results, f"{family} one", "stage") - LOSS


@pytest.mark.parametrize("run", SKIPPING)
@pytest.mark.parametrize("family, name", PLACES)
def test_stages_skip_the_steps_that_one_process_skips(results, family, name, run):
    """Although each stage sees the states that enter its own blocks alone."""
    alone = {entry.step for entry in results[0][f"{family} one"]["stage"].ledger if entry.skip}
    for answer in answers(results, f"{family} {name}", run):
        assert {entry.step for entry in answer.ledger if entry.skip} == alone


@pytest.mark.parametrize("family", LAYOUTS)
def test_groups_of_blocks_under_two_stages(results, family):
    case = f"{family} pp2"
    assert min(answer.share for answer in answers(results, case, "groups")) > 0.15
    assert quality(results, case, "groups") > quality(results, f"{family} one", "groups") - LOSS


def agreeing(name: str) -> list[list[int]]:
    """Ranks of one stage and replica, given that xDiT counts sequence ranks fastest, then stages, then branches."""
    return {"u2 pp2": [[0, 1], [2, 3]], "ring2 pp2": [[0, 1], [2, 3]], "pp2 cfg2": [[0, 2], [1, 3]]}.get(name, [])


@pytest.mark.parametrize("run", SKIPPING)
@pytest.mark.parametrize("family, name", [place for place in PLACES if agreeing(place[1])])
def test_ranks_of_a_stage_keep_equal_ledgers(results, family, name, run):
    found = answers(results, f"{family} {name}", run)
    for first, second in agreeing(name):
        assert found[first].ledger == found[second].ledger
        assert found[first].agreed and found[second].agreed


@pytest.mark.parametrize("family, name", PLACES)
def test_all_stages_follow_the_leader(results, family, name):
    found = [decided(answer) for answer in answers(results, f"{family} {name}", "leader")]
    for rank, follower in enumerate(found):
        first = found[rank % 2 if name.startswith(("u2", "ring2")) else rank - rank % stages(name)]
        assert {place: skip for place, (skip, _) in follower.items() if skip != first[place][0]} == {}
        assert follower.keys() == first.keys()


def test_stages_that_would_decide_apart_are_held_together_by_the_leader(results):
    apart, led = ([skips(answer) for answer in answers(results, "pixart pp2", run)] for run in APART)
    assert apart[0] != apart[1]
    assert led[0] == apart[0] == led[1]
    followed = answers(results, "pixart pp2", "split, leader")[1]
    assert {entry.reason for entry in followed.ledger} == {"leader", "no reference"}
    assert min(clearance(answer, APART_AT["error_budget"]) for answer in answers(results, "pixart pp2", "split")) > 0.01


@pytest.mark.parametrize("family", ["pixart", "sd3"])
def test_stages_follow_what_was_measured_a_step_before(results, family):
    found = answers(results, f"{family} pp2 cfg2", "ahead")
    assert [skips(answer) for answer in found] == [skips(found[0])] * 4
    assert min(answer.share for answer in found) > 0.15 and all(answer.agreed for answer in found)


def stages(name: str) -> int:
    return 4 if name == "pp4" else 2


def skips(answer: Answer) -> list[tuple]:
    return [(entry.step, entry.patch, entry.skip) for entry in answer.ledger]


def decided(answer: Answer) -> dict[tuple, tuple[bool, str]]:
    return {(entry.step, entry.patch): (entry.skip, entry.reason) for entry in answer.ledger}


@pytest.mark.parametrize("family", LAYOUTS)
def test_decisions_are_counted_by_patch(results, family):
    """One message each for the full first step and for every patch of the others; SD3 decides once for all patches."""
    patches = 1 if family == "sd3" else 2
    for answer in answers(results, f"{family} u2 pp2", "stage"):
        assert answer.counts["collectives"] == 1 + (STEPS - 1) * patches + 1
