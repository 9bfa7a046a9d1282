"""Each transformer of xDiT's runner on two ranks: blocks are skipped as in one process, and xDiT agrees with diffusers.

The ranks run `runner_worker.py` once for all of them.
"""

from __future__ import annotations

import importlib.util

import pytest

from tests.parallel.answers import CLOSE, WRONG
from tests.parallel.runner_zoo import CURED, LAYOUTS, PLACES, REFUSED, RUNNERS, faults, passed, results

UNBUILT = {
    "causal_wan": "xFuserCausalWanTransformer3DWrapper",
    "lingbot_video": "xFuserLingBotVideoTransformer3DWrapper",
}


@pytest.mark.parametrize("name, layout", PLACES)
def test_the_cache_is_as_good_as_in_one_process(name, layout):
    assert faults(name, layout) == []


@pytest.mark.parametrize("name, layout", PLACES)
def test_ranks_take_the_same_decisions(name, layout):
    first, second = (result["answers"][name][layout].run for result in results())
    assert first.choices == second.choices
    assert first.counts["approximated"] == second.counts["approximated"]
    assert first.counts["computed"] == second.counts["computed"]


@pytest.mark.parametrize("name, layout", PLACES)
def test_xdit_is_mended_where_it_differs_from_diffusers_and_nowhere_else(name, layout):
    for answer in (result["answers"][name][layout] for result in results()):
        is_mended = name in CURED and layout in ("ulysses", "ring")
        assert answer.broken > WRONG if is_mended else answer.broken < CLOSE


@pytest.mark.parametrize("place", [place for place in REFUSED if ", " in place])
def test_a_layout_is_refused_because_xdit_does_not_offer_it(place):
    name, layout = place.split(", ")
    assert [result["offered"][RUNNERS[name].name][layout] for result in results()] == [False, False]


def test_causal_wan_has_no_sequence_parallelism():
    offered = results()[0]["offered"]["CausalWan"]
    assert not offered["ulysses"] and not offered["ring"]


def test_lingbot_video_is_not_installed():
    assert importlib.util.find_spec("lingbot_video") is None


def test_every_transformer_of_the_runner_is_here_or_refused():
    built = {runner.wrapper.partition(".")[0] for runner in RUNNERS.values()}
    assert set(results()[0]["modules"]) == built | set(UNBUILT)
    assert set(UNBUILT.values()) <= set(REFUSED)


def test_what_passed_is_all_that_is_not_refused():
    assert passed() == {name: [layout for layout in LAYOUTS if (name, layout) in PLACES] for name in RUNNERS}


@pytest.mark.parametrize("name", RUNNERS)
def test_a_layout_that_was_not_tried_is_offered(name):
    assert all(results()[0]["offered"][RUNNERS[name].name][layout] for layout in RUNNERS[name].untried)
