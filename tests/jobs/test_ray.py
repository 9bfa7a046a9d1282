"""Replicas on a local Ray cluster, killed with SIGKILL, as is the driver with its whole cluster."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from pathlib import Path

from tests.jobs.launching import check_equal, kill, launched, submit, told, wait_for
from tests.parallel.launch import children_of

ON_RAY = ("--ray", "--replicas", "2", "--max_attempts", "1000")


def test_a_killed_replica_is_replaced_and_a_killed_cluster_goes_on(tmp_path, undisturbed):
    job = submit(tmp_path / "job", 60)
    with launched(0, str(job.folder), *ON_RAY) as driver:
        for done in (5, 15, 20):
            wait_for(job, done, driver)
            assert kill(replicas_of(driver)[0])
        wait_for(job, 25, driver)
        kill(driver.pid)
    with launched(0, str(job.folder), *ON_RAY) as driver:
        words = told(driver)
    assert driver.returncode == 0, words
    check_equal(job, undisturbed)


def test_two_ranks_of_one_replica_stop_when_asked(tmp_path):
    job = submit(tmp_path / "job", 60)
    with launched(0, str(job.folder), "--ray", "--ulysses_degree", "2") as driver:
        wait_for(job, 2, driver)
        settings = Path(f"/proc/{replicas_of(driver)[0]}/environ").read_text().split("\0")
        driver.send_signal(signal.SIGTERM)
        words = told(driver)
    counts = job.counts()
    assert driver.returncode == 75 and "the same command goes on" in words, words
    assert counts["running"] == 0 and 2 <= counts["done"] < 60
    assert "RAY_AUTH_MODE=token" in settings, "nobody else of this machine, or its network, gets in"
    assert any(re.fullmatch("RAY_AUTH_TOKEN=[0-9a-f]{64}", each) for each in settings)


def test_a_cluster_that_is_too_small_is_refused(tmp_path):
    job = submit(tmp_path / "job", 1)
    with launched(0, str(job.folder), "--ray", "--replicas", "1000") as driver:
        words = told(driver)
    assert driver.returncode == 2
    assert "1000 replicas of 1 ranks need 1000 CPUs" in words and "set --replicas" in words


def replicas_of(driver: subprocess.Popen) -> list[int]:
    """Process ids of the ranks at work, once there is one."""
    while driver.poll() is None:
        if found := [process for process in _descendants(driver.pid) if _title(process).startswith("ray::Rank")]:
            return found
        time.sleep(0.05)
    raise AssertionError("the driver ended")


def _descendants(process: int) -> list[int]:
    children = children_of(process)
    return children + [each for child in children for each in _descendants(child)]


def _title(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_text()
    except OSError:
        return ""
