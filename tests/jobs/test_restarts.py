"""A rank that fails alone, and items that fail on all ranks: the reason is kept, and the rest goes on by itself."""

from __future__ import annotations

import json

from tests.jobs.launching import launched, submit, told

COUNT = 4
ALONE, TOGETHER = 1, 0


def test_an_error_of_one_rank_alone_ends_its_item_and_nothing_else(tmp_path):
    job = submit(tmp_path / "job", COUNT, "--lease", "3")
    broken = json.dumps({TOGETHER: [0, 1], ALONE: [1]})
    words = (str(job.folder), "--ulysses_degree", "2", "--max_attempts", "1")
    with launched(2, *words, program="tests.jobs.sabotaged", SABOTAGE=broken) as launcher:
        said = told(launcher)
    assert launcher.returncode == 0, said
    assert job.counts() == {"pending": 0, "running": 0, "done": COUNT - 2, "failed": 2}, said
    errors = {item.id: item.error for item in job.items("state = 'failed'")}
    assert errors[TOGETHER] == f"MemoryError: no room for item {TOGETHER}"
    assert "1 attempts that ended with their process: ReplicaError: rank 1: MemoryError: no room" in errors[ALONE]
    assert said.count("its ranks start again") == 1


def test_a_mistake_that_one_rank_meets_is_said_by_that_one_alone(tmp_path):
    job = submit(tmp_path / "job", COUNT)
    (job.folder / "job.sqlite").write_bytes(b"no database at all")
    with launched(2, str(job.folder), "--ulysses_degree", "2") as launcher:
        said = told(launcher)
    assert launcher.returncode == 1
    assert said.count("fastcache_xdit: error: ") == 1 and "this should not happen" not in said, said
