"""A replica that is stopped, or stuck, loses what it holds; nothing is made twice, and what comes late is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastcache_xdit.errors import UsageError
from fastcache_xdit.jobs import desk as desks
from fastcache_xdit.jobs.desk import StoreDesk
from fastcache_xdit.jobs.export import damaged
from tests.jobs.jobs import FIGURES, outcomes, store
from tests.jobs.test_store import ROOT

LEASE = 1.0


@pytest.fixture
def start(tmp_path):
    """Start workers on the job; whatever becomes of the test, none is left."""
    started = []

    def start(hold):
        command = [sys.executable, "-m", "tests.jobs.slow_worker", str(tmp_path / "job"), str(hold)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("stops", [True, False], ids=["stopped", "stuck"])
def test_what_a_replica_holds_that_gets_nowhere_is_made_by_another_once(tmp_path, start, stops):
    job, hold = store(tmp_path / "job", 3, lease=LEASE), tmp_path / "hold"
    hold.touch()
    first = start(hold)
    assert first.stdout.readline() == "took 0\n"
    if stops:
        first.send_signal(signal.SIGSTOP)
    second = start(tmp_path / "nothing")
    assert second.communicate(timeout=300)[0].splitlines() == ["took 1", "took 2", "took 0", "ended"]
    assert job.counts() == {"pending": 0, "running": 0, "done": 3, "failed": 0}
    before = job.items(), _written(job)
    hold.unlink()
    first.send_signal(signal.SIGCONT)
    assert first.communicate(timeout=300)[0].splitlines() == ["ended"], "it finds nothing left"
    assert (job.items(), _written(job)) == before, "its delivery came late"
    assert damaged(job) == [] and [item.attempts for item in job.items()] == [2, 1, 1]


def _written(job):
    return {path.name: path.stat().st_mtime_ns for path in (job.folder / "images").iterdir()}


def test_a_late_image_replaces_nobodys_even_where_its_claim_was_good_when_it_began_to_write(tmp_path, monkeypatch):
    job = store(tmp_path, 1, lease=1000)
    late, quick = StoreDesk(job), StoreDesk(job)
    taken = late.next().items
    write = desks.force_to_disk

    def overtaken(path):
        monkeypatch.setattr(desks, "force_to_disk", write)
        _be_late(job, late)
        quick.deliver(outcomes(quick.next().items), FIGURES)
        write(path)

    monkeypatch.setattr(desks, "force_to_disk", overtaken)
    other = [outcome.__class__(outcome.id, image=b"late") for outcome in outcomes(taken)]
    late.deliver(other, FIGURES)
    assert (tmp_path / "images/000000.png").read_bytes() == b"0" and damaged(job) == []
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["000000.png"]


def test_who_learns_for_a_job_and_gets_nowhere_makes_room_for_another(tmp_path):
    job = store(tmp_path, 1, lease=1000)
    late, quick = StoreDesk(job), StoreDesk(job)
    assert late.learnt({}).is_ours and not quick.learnt({}).is_ours
    _be_late(job, late)
    assert quick.learnt({}).is_ours and not late.learnt({}).is_ours
    late.keep(None)
    assert not (tmp_path / "learnt.safetensors").exists(), "what it learnt comes too late"


def _be_late(job, desk):
    """As after that much time without a beat."""
    job.leases._database.change("UPDATE owners SET beat = ? WHERE name = ?", time.monotonic() - 2000, desk._owner.name)


def test_waiting_for_others_is_said(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(desks, "QUIET", 0.0)
    job = store(tmp_path, 1)
    one, two = StoreDesk(job), StoreDesk(job)
    one.next()
    for _ in range(2):
        assert two.next() == ((), True)
    assert "waiting: other processes hold what is left, and loses it after 600 s without progress" in caplog.text


def test_what_failed_once_comes_last_and_then_until_it_is_settled(tmp_path):
    job = store(tmp_path, 4)
    taken = []
    for _ in range(6):
        desk = StoreDesk(job, max_attempts=3)
        (item,) = desk.next().items
        taken.append(item.id)
        if item.id < 2:
            desk.abandon("boom")
        else:
            desk.deliver(outcomes([item]), FIGURES)
            desk.close()
    assert taken == [0, 1, 2, 3, 0, 0]
    desk = StoreDesk(job, max_attempts=3)
    assert [item.id for item in desk.next().items] == [1]
    assert job.items()[0].error == "given up after 3 attempts that ended with their process: boom"


def test_an_owner_that_is_a_path_is_damage_and_nothing_is_removed(tmp_path):
    job, file = store(tmp_path / "job", 1), tmp_path / "precious"
    StoreDesk(job).next()
    file.write_text("")
    job._database.change("UPDATE items SET owner = ?", "../../precious")
    for ask in (job.counts, StoreDesk(job).next, job.items):
        with pytest.raises(UsageError, match=r"job.sqlite is damaged"):
            ask()
    assert Path(file).exists()
