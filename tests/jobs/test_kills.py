"""Real ranks, real SIGKILL: every image is there in the end, once, and equal to that of an undisturbed run."""

from __future__ import annotations

import random
import signal

import pytest

from tests.jobs.launching import COUNT, LIMIT, check_equal, kill, launched, ranks_of, submit, told, wait_for

KILLS = 12
REPLICAS = ("--data_parallel_degree", "2", "--max_attempts", "1000")


def test_images_do_not_depend_on_who_is_killed(tmp_path, undisturbed):
    job = submit(tmp_path / "job", COUNT)
    moments, kills = random.Random(0), 0
    while kills < KILLS:
        with launched(2, str(job.folder), *REPLICAS) as launcher:
            kills += kill_two(job, launcher, moments)
    with launched(2, str(job.folder), *REPLICAS) as launcher:
        words = told(launcher)
    assert launcher.returncode == 0, words
    check_equal(job, undisturbed)


def kill_two(job, launcher, moments) -> int:
    """Kill a rank after some more images, and at once the other rank or the launcher; returns how many died of it."""
    ranks = ranks_of(launcher, 2)
    wait_for(job, job.counts()["done"] + moments.randint(0, 6), launcher)
    moments.shuffle(ranks)
    second = moments.choice([launcher.pid, ranks[-1]]) if ranks else launcher.pid
    return sum(kill(victim) for victim in (*ranks[:1], second) if launcher.poll() is None)


@pytest.mark.parametrize("ranks, layout", [(0, ()), (2, ("--ulysses_degree", "2"))], ids=["one process", "two ranks"])
def test_a_run_that_is_asked_to_stop_finishes_what_it_holds(tmp_path, ranks, layout):
    job = submit(tmp_path / "job", COUNT)
    with launched(ranks, str(job.folder), *layout) as launcher:
        wait_for(job, 2, launcher)
        launcher.send_signal(signal.SIGTERM)
        words = told(launcher)
    counts = job.counts()
    assert "stopped; the same command goes on" in words, words
    assert launcher.returncode == (75 if ranks == 0 else 1), "torchrun has a code of its own"
    assert counts["running"] == 0 and 2 <= counts["done"] < COUNT
    assert [item.attempts for item in job.items()] == [int(item.state == "done") for item in job.items()]


def test_a_job_that_is_over_loads_no_model(undisturbed):
    before = undisturbed.items()
    with launched(0, str(undisturbed.folder)) as process:
        assert "60 of 60 images done" in process.communicate(timeout=LIMIT)[0]
    assert process.returncode == 0 and undisturbed.items() == before


@pytest.mark.parametrize("where", [(), ("--ray",)], ids=["here", "ray"])
def test_a_config_that_does_not_fit_the_model_ends_the_run_and_fails_no_item(tmp_path, where):
    job = submit(tmp_path / "job", 3, "--cache_config", '{"test": "paper", "lead_blocks": 50}')
    with launched(0, str(job.folder), *where) as process:
        words = told(process)
    assert process.returncode == 2 and "Traceback" not in words
    assert "lead_blocks=50 leaves nothing to skip" in words
    assert job.counts() == {"pending": 3, "running": 0, "done": 0, "failed": 0}
