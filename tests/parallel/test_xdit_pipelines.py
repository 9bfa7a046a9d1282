"""Each of xDiT's own pipelines on two ranks, in each layout: steps are skipped as in one process.

The ranks are those of `test_runner_models.py`, which start once for both.
"""

from __future__ import annotations

import pytest

from fastcache_xdit.models.tried import KINDS, all_tried
from tests.parallel.answers import CLOSE, WRONG, Answer, faults_of
from tests.parallel.layouts_tried import offered, passed, pipelines, refused
from tests.parallel.pipeline_zoo import LAYOUTS, NO_FLASH, PIPELINES
from tests.parallel.runner_zoo import RUNNERS, results

PLACES = [(kind, layout) for kind, made in PIPELINES.items() for layout in made.layouts]
MISSING = [(kind, layout) for kind in PIPELINES for layout in LAYOUTS if (kind, layout) not in PLACES]
ELSEWHERE = {
    "Flux2KleinPipeline",  # the same class as for FLUX.2 but for its text encoder
    "Lumina2Pipeline",  # what the runner takes, whose transformer is in runner_zoo.py
}


def answers(kind: str, layout: str) -> list[Answer | str]:
    return [result["pipelines"][kind][layout] for result in results()]


@pytest.mark.parametrize("kind, layout", PLACES)
def test_the_cache_is_as_good_as_in_one_process(kind, layout):
    found = answers(kind, layout)
    assert [answer if isinstance(answer, str) else faults_of(answer) for answer in found] == [[], []]
    assert any(answer.run.latents is not None for answer in found)


@pytest.mark.parametrize("kind, layout", PLACES)
def test_ranks_take_the_same_decisions(kind, layout):
    first, second = answers(kind, layout)
    assert first.run.choices == second.run.choices


@pytest.mark.parametrize("kind, layout", [("LattePipeline", "ulysses"), ("LattePipeline", "ring")])
def test_latte_is_mended(kind, layout):
    assert max(answer.broken for answer in answers(kind, layout)) > WRONG
    assert max(answer.cured for answer in answers(kind, layout)) < CLOSE


@pytest.mark.parametrize("kind, layout", MISSING)
def test_a_layout_is_missing_because_xdit_fails_in_it_or_shares_nothing(kind, layout):
    for answer in answers(kind, layout):
        assert isinstance(answer, str)
        assert answer in ("every rank computes all", NO_FLASH) or answer.endswith(" off") or "Error: " in answer


@pytest.mark.parametrize("kind", [kind for kind, layout in PLACES if layout == "pipefusion"])
def test_stages_skip_blocks_of_known_models_alone(kind):
    told = [answer.told for answer in answers(kind, "pipefusion")]
    assert all(("not supported under PipeFusion" in text) != PIPELINES[kind].known for text in told)


def test_every_pipeline_class_of_xdit_is_here():
    assert set(results()[0]["classes"]) - ELSEWHERE == set(PIPELINES)


def test_the_table_says_what_passed():
    tried = {name: row for name, row in all_tried().items() if name in RUNNERS or name in pipelines()}
    assert passed() == {name: offered(name) for name in tried}
    assert {name: row.layouts for name, row in tried.items()} == {name: offered(name) for name in tried}
    assert {name: dict(row.refused) for name, row in tried.items()} == {name: refused(name) for name in tried}


def test_each_class_has_or_lacks_each_layout_for_a_reason():
    for name in {*RUNNERS, *pipelines()}:
        assert set(offered(name)) | {key for key in refused(name) if ", " not in key} == set(KINDS.values())
