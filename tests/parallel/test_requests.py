"""Nothing leaks from one request into the next, and nothing is left of a cache that was switched off."""

from __future__ import annotations

import pytest
import torch

from tests.parallel.cached import Answer, relative
from tests.parallel.launch import run_ranks

ULYSSES, STAGES = {"ulysses_degree": 2}, {"pipefusion_parallel_degree": 2}
LAYOUTS = {"one": {}, "u2": ULYSSES, "pp2": STAGES}
ROWS = [("pixart", name) for name in LAYOUTS] + [("flux", "u2"), ("flux", "pp2"), ("sd3", "pp2")]
CASES = {
    **{f"{family} {name} row": ("in a row", family, LAYOUTS[name]) for family, name in ROWS},
    "u2 traces": ("on and off", "pixart", ULYSSES),
    "pp2 traces": ("on and off", "pixart", STAGES),
    "tp2 u2 traces": ("on and off", "flux", {"tensor_parallel_degree": 2, **ULYSSES}),
    "u2 callback": ("callback", "pixart", ULYSSES),
    "u2 attention": ("attention", "pixart", ULYSSES),
    "pp2 attention": ("attention", "pixart", STAGES),
    "one by hand": ("by hand", "pixart", {}),
    "u2 by hand": ("by hand", "pixart", ULYSSES),
}
TRACES = [name for name in CASES if name.endswith("traces")]
STOPS = [name for name in CASES if name.endswith(("callback", "attention"))]


@pytest.fixture(scope="module")
def results() -> list[dict]:
    cases = {name: {"ask": ask, "family": family, "degrees": on} for name, (ask, family, on) in CASES.items()}
    return run_ranks("requests_worker.py", 4, cases=cases)


def same(answer: Answer, other: Answer) -> bool:
    if answer.latents is None or other.latents is None:
        return answer.latents is other.latents
    return torch.equal(answer.latents, other.latents)


@pytest.mark.parametrize("family, name", ROWS)
def test_requests_in_a_row_equal_requests_alone(results, family, name):
    for result in results:
        case = result[f"{family} {name} row"]
        for mine, alone in zip(case["row"], case["alone"], strict=True):
            assert same(mine, alone)
            assert mine.ledger == alone.ledger
        assert case["row"][-1].share > 0.15


@pytest.mark.parametrize("name", TRACES)
def test_switching_on_and_off_leaves_no_trace(results, name):
    for result in results:
        assert result[name]["left"] == [[], []]
        assert all(any(key.endswith(".forward") for key in changed) for changed in result[name]["changed"])


@pytest.mark.parametrize("name", TRACES)
def test_outputs_with_and_without_cache_repeat_bit_by_bit(results, name):
    for result in results:
        assert same(*result[name]["plain"])
        assert same(*result[name]["cached"])
    assert any(not same(result[name]["plain"][0], result[name]["cached"][0]) for result in results)


@pytest.mark.parametrize("name", STOPS)
def test_an_exception_inside_the_block_leaves_no_trace(results, name):
    for rank, result in enumerate(results):
        expected = ["left the block"] if name.startswith("u2") or rank % 2 else ["not at all"]
        assert result[name]["stopped"] == expected
        assert result[name]["left"] == []


@pytest.mark.parametrize("name", STOPS)
def test_the_request_after_an_exception_is_clean(results, name):
    for result in results:
        for fresh, following in zip(result[name]["fresh"], result[name]["next"], strict=True):
            assert same(fresh, following)
            assert fresh.ledger == following.ledger


@pytest.mark.parametrize("kind", ["paper", "plan"])
def test_a_plain_pipeline_that_is_divided_by_hand_decides_as_one_process(results, kind):
    """Ranks that decided apart would wait for each other inside of an attention, for ever."""
    one = results[0]["one by hand"]
    for result in results:
        mine = result["u2 by hand"][kind]
        assert relative(result["u2 by hand"]["uncached"].latents, one["uncached"].latents) < 1e-4
        assert relative(mine.latents, one[kind].latents) < 1e-4
        assert mine.choices == one[kind].choices
        assert mine.agreed and mine.share > 0.15
    pairs = [(results[rank]["u2 by hand"][kind], results[rank + 1]["u2 by hand"][kind]) for rank in (0, 2)]
    assert all(left.ledger == right.ledger for left, right in pairs)
    assert pairs[0][0].counts["collectives"] > 0
    assert one[kind].counts["collectives"] == 0, "replicas decide apart"
