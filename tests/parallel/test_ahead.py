"""Skipped steps that the last PipeFusion stage takes alone give what all stages give in turn, in fewer calls."""

from __future__ import annotations

import pytest

from tests.parallel.cached import STEPS, relative
from tests.parallel.launch import run_ranks

CLOSE = 1e-5  # relative: schedulers of patches step in diffusers' own arithmetic instead of xDiT's
MASK = "1011000100"
TWO, FOUR = {"pipefusion_parallel_degree": 2}, {"pipefusion_parallel_degree": 4}
ULYSSES, BRANCHES = {"ulysses_degree": 2}, {"use_cfg_parallel": True}
LAYOUTS = {
    "pixart pp2": ("pixart", TWO),
    "pixart pp4": ("pixart", FOUR),
    "pixart u2 pp2": ("pixart", {**ULYSSES, **TWO}),
    "pixart pp2 cfg2": ("pixart", {**TWO, **BRANCHES}),
    "pixart pp2, late": ("pixart", {**TWO, "warmup_steps": 3}),
    "pixart pp2, 4 patches": ("pixart", {**TWO, "num_pipeline_patch": 4}),
    "sd3 pp2": ("sd3", TWO),
    "sd3 u2 pp2": ("sd3", {**ULYSSES, **TWO}),
    "flux pp2": ("flux", TWO),
    "flux pp4": ("flux", FOUR),
    "flux u2 pp2": ("flux", {**ULYSSES, **TWO}),
}
WHOLE = {f"{family} whole": (family, {**TWO, "warmup_steps": STEPS}) for family in ("pixart", "sd3", "flux")}
FREE = {"test": "none", "warmup_steps": 1, "cooldown_steps": 0, "max_consecutive_skips": STEPS, "lead_blocks": 0}
ONCE = "1" + "0" * (STEPS - 1)
ONCES = {"once": "pixart pp2", "once, u2": "flux u2 pp2"}
REQUESTS = [{"seed": 1}, {"seed": 2, "pixels": 192}, {"seed": 3}]


@pytest.fixture(scope="module")
def results():
    masked = {**FREE, "schedule": {STEPS: MASK}}
    cases = {
        name: {"family": family, "degrees": degrees, "config": masked, "requests": REQUESTS}
        for name, (family, degrees) in (LAYOUTS | WHOLE).items()
    }
    cases |= {f"{family} one": {**cases[f"{family} whole"], "degrees": {}} for family in ("pixart", "sd3", "flux")}
    once = {**FREE, "schedule": {STEPS: ONCE}}
    cases |= {name: {**cases[like], "config": once} for name, like in ONCES.items()}
    cases["hard limits"] = {**cases["pixart pp2"], "config": {**masked, "max_consecutive_skips": 2}}
    return run_ranks("ahead_worker.py", 4, cases=cases)


def pairs(results, case):
    """Answers of both ways by rank and request."""
    for result in results:
        yield from zip(result[case]["ahead"], result[case]["in turn"], strict=True)


@pytest.mark.parametrize("case", [*LAYOUTS, *WHOLE, *ONCES, "hard limits"])
def test_latents_are_those_of_all_stages_in_turn(results, case):
    assert all(result[case][what] for result in results for what in ("possible", "restored", "of itself"))
    compared = [
        relative(mine.latents, theirs.latents) for mine, theirs in pairs(results, case) if mine.latents is not None
    ]
    assert len(compared) >= len(REQUESTS) and max(compared) < CLOSE


@pytest.mark.parametrize("family", ["pixart", "sd3", "flux"])
def test_on_whole_sequences_they_are_those_of_one_process(results, family):
    alone = results[0][f"{family} one"]["in turn"]
    for result in results:
        for mine, one in zip(result[f"{family} whole"]["ahead"], alone, strict=True):
            assert mine.latents is None or relative(mine.latents, one.latents) < 1e-4


@pytest.mark.parametrize("case", [*LAYOUTS, *WHOLE, *ONCES, "hard limits"])
def test_decisions_and_counts_are_the_same(results, case):
    for mine, theirs in pairs(results, case):
        chosen = [{(entry.step, entry.skip) for entry in answer.ledger} for answer in (mine, theirs)]
        assert chosen[0] == chosen[1] and len(chosen[0]) == STEPS
        assert mine.agreed is True
        assert mine.counts["computed_total"] == theirs.counts["computed_total"]
        assert mine.counts["approximated_total"] > 0


@pytest.mark.parametrize("case", LAYOUTS)
def test_other_stages_are_called_for_computed_steps_alone(results, case):
    _, degrees = LAYOUTS[case]
    patches = degrees.get("num_pipeline_patch", degrees["pipefusion_parallel_degree"])
    whole = degrees.get("warmup_steps", 1)
    computed = MASK[:whole].count("1") + MASK[whole:].count("1") * patches
    seen = {answer.counts["transformer_calls"] for result in results for answer in result[case]["ahead"]}
    assert min(seen) == computed and len(seen) == 2, "and the last stage for the skipped ones as well"


def test_a_mask_without_a_computed_patch_never_leaves_whole_sequences(results):
    calls = {answer.counts["transformer_calls"] for result in results for answer in result["once"]["ahead"]}
    assert calls == {1, STEPS}


def test_without_stages_there_is_nothing_ahead(results):
    assert not any(result["pixart one"]["possible"] for result in results)
