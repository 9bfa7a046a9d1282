"""After `register()`, xDiT's own cache arguments and flags switch FastCache on."""

from __future__ import annotations

import pytest

from tests.parallel.launch import run_ranks


@pytest.fixture(scope="module")
def results() -> list[dict]:
    return run_ranks("registered_worker.py", 2)


@pytest.mark.parametrize("way", ["by argument", "by flag"])
def test_a_pipeline_of_the_users_own_script_is_cached(results, way):
    for result in results:
        assert result[way].share > 0.2
        assert result[way].agreed
    assert results[0][way].choices == results[1][way].choices


def test_other_names_still_reach_xdit(results):
    for result in results:
        assert "nonsense" in result["unknown"]


def test_stages_without_warm_up_are_refused(results):
    for result in results:
        assert "warmup_steps=0 is not supported under PipeFusion" in result["no warm-up"]


def test_a_leader_without_blocks_to_skip_is_refused(results):
    for result in results:
        assert "leaves the first PipeFusion stage, which decides for all, nothing to skip" in result["all lead"]
        assert "it has 4 blocks" in result["all lead"]


def test_without_flag_nothing_is_cached(results):
    assert [result["no flag"] for result in results] == [0, 0]
