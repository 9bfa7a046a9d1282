"""Whom everybody waits for is said, by a rank that can, and the end is the same for all."""

from __future__ import annotations

import pytest

from tests.parallel.launch import run_ranks


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_rank_is_named_and_nothing_is_lost(stopped):
    results = run_ranks("watch_worker.py", 2, 300.0, stopped=stopped)
    told = results[1 - stopped]["told"]
    assert f"everybody waits for rank {stopped}" in told and "fastcache: no progress for " in told
    assert [each["ended"] for each in results] == [["rank 1"]] * 2, "for the same reason"
    assert [each["met"] for each in results] == [(True, False)] * 2, "both know that one came too late"
