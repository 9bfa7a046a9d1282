"""The store: every item is done once, whoever dies when."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as some
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from pyarrow import parquet

from fastcache_xdit.files import checksum
from fastcache_xdit.jobs.desk import StoreDesk
from fastcache_xdit.jobs.export import damaged, export
from fastcache_xdit.jobs.item import ItemOutcome
from fastcache_xdit.jobs.store import Store
from tests.jobs.jobs import FIGURES, items, outcomes, recipe, store

ROOT = Path(__file__).resolve().parents[2]


def test_a_batch_is_claimed_once_and_done(tmp_path):
    job = store(tmp_path, 3, batch_size=2)
    one, two = StoreDesk(job), StoreDesk(job)
    first, second = one.next(), two.next()
    assert [[item.id for item in work.items] for work in (first, second)] == [[0, 1], [2]]
    assert one.next() == ((), True), "others hold items that may come back"
    one.deliver(outcomes(first.items), FIGURES)
    two.deliver([ItemOutcome(2, error="NaN")], FIGURES)
    assert one.next() == ((), False)
    assert job.counts() == {"pending": 0, "running": 0, "done": 2, "failed": 1}
    done = job.items("state = 'done'")
    assert [(tmp_path / item.output).read_bytes() for item in done] == [b"0", b"1"]
    assert done[1].checksum == checksum(b"1") and done[1].attempts == 1 and done[1].seconds == 0.5
    assert job.items("state = 'failed'")[0].error == "NaN"


def test_closing_gives_back_and_dying_counts_as_an_attempt(tmp_path):
    job = store(tmp_path, 1)
    desk = StoreDesk(job)
    assert desk.next().items[0].attempts == 1
    desk.close()
    assert (job.items()[0].state, job.items()[0].attempts) == ("pending", 0)
    for attempt in (1, 2):
        desk = StoreDesk(job, max_attempts=2)
        assert desk.next().items[0].attempts == attempt
        desk.abandon("CUDA error")
        assert job.counts()["pending"] == 1, "what a dead owner left is not running"
    assert StoreDesk(job, max_attempts=2).next() == ((), False)
    assert job.items()[0].error == "given up after 2 attempts that ended with their process: CUDA error"
    assert job.retry([]) == 1 and StoreDesk(job).next().items[0].attempts == 1


def test_a_batch_is_generated_whole_again_but_recorded_where_it_was_missing(tmp_path):
    job = store(tmp_path, 2, batch_size=2)
    desk = StoreDesk(job)
    desk.deliver(outcomes(desk.next().items[:1]), FIGURES)
    desk.abandon("killed")
    done, desk = job.items()[0], StoreDesk(job)
    again = desk.next().items
    assert [item.id for item in again] == [0, 1]
    desk.deliver(outcomes(again), FIGURES)
    assert job.items()[0] == done and job.counts()["done"] == 2


def test_retry_takes_damaged_images_and_leaves_bad_lines(tmp_path):
    job = Store.create(tmp_path, recipe(), items([{"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"}, {}]))
    desk = StoreDesk(job)
    for _ in range(3):
        desk.deliver(outcomes(desk.next().items), FIGURES)
    (tmp_path / "images/000001.png").write_bytes(b"half")
    (tmp_path / "images/000002.png").unlink()
    assert damaged(job) == [1, 2]
    assert job.retry(damaged(job)) == 2
    assert job.counts() == {"pending": 2, "running": 0, "done": 1, "failed": 1}


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_export_writes_every_item(tmp_path, kind):
    job = store(tmp_path, 2)
    desk = StoreDesk(job)
    desk.deliver(outcomes(desk.next().items), FIGURES)
    export(job, tmp_path / f"table.{kind}")
    readers = {"jsonl": _read_jsonl, "csv": _read_csv, "parquet": _read_parquet}
    rows = readers[kind](tmp_path / f"table.{kind}")
    assert [row["prompt"] for row in rows] == ["prompt 0", "prompt 1"]
    assert rows[0]["checksum"] == checksum(b"0") and rows[0]["output"] == str(tmp_path / "images/000000.png")
    with pytest.raises(ValueError, match="not as .xlsx"):
        export(job, tmp_path / "table.xlsx")


def _read_jsonl(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def _read_csv(path):
    return list(csv.DictReader(path.open(newline="")))


def _read_parquet(path):
    return parquet.read_table(path).to_pylist()


def test_a_folder_holds_one_job_or_none(tmp_path):
    with pytest.raises(ValueError, match="no job in"):
        Store(tmp_path)
    store(tmp_path, 1)
    with pytest.raises(ValueError, match="holds a job already"):
        store(tmp_path, 1)


# Where a worker is killed while it delivers: at the n-th of these calls, before or after it has happened.
CRASHES = [(call, when) for call in ("os.fsync", "os.replace", "store.record") for when in ("before", "after")]
DYING = """
import os, signal, sys
from pathlib import Path
from fastcache_xdit import files
from fastcache_xdit.jobs.desk import StoreDesk
from fastcache_xdit.jobs.store import Store
from tests.jobs.jobs import FIGURES, outcomes
folder, call, when = sys.argv[1:]
desk = StoreDesk(Store(folder))
taken = desk.next().items
owner = Store if call == "store.record" else os
name = call.split(".")[1]
original = getattr(owner, name)
def deadly(*args, **kwargs):
    if when == "after":
        original(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(owner, name, deadly)
desk.deliver(outcomes(taken), FIGURES)
"""


@pytest.mark.parametrize("call, when", CRASHES)
def test_killed_at_any_moment_of_a_delivery_nothing_is_lost_doubled_or_half(tmp_path, call, when):
    job = store(tmp_path, 2)
    command = [sys.executable, "-c", DYING, str(tmp_path), call, when]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    died = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    images = list((tmp_path / "images").glob("*.png"))
    assert all(path.read_bytes() == str(int(path.stem)).encode() for path in images), "no half image"
    was_recorded = (call, when) == ("store.record", "after")
    assert job.counts() == {"pending": 2 - was_recorded, "running": 0, "done": int(was_recorded), "failed": 0}
    desk = StoreDesk(job)
    while (taken := desk.next()).items:
        desk.deliver(outcomes(taken.items), FIGURES)
    assert job.counts()["done"] == 2 and damaged(job) == []
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["000000.png", "000001.png"]


class Workers(RuleBasedStateMachine):
    """Desks that come, work, and go in every order."""

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.job = store(self.folder, 5, batch_size=2)
        self.desks: dict[StoreDesk, tuple] = {}
        self.done: dict[int, float] = {}

    def teardown(self):
        self.job.close()
        shutil.rmtree(self.folder)

    @rule()
    def comes(self):
        self.desks[StoreDesk(self.job, max_attempts=1000)] = ()

    @precondition(lambda self: self.desks)
    @rule(data=some.data())
    def takes(self, data):
        desk = data.draw(some.sampled_from(list(self.desks)))
        if not self.desks[desk]:
            self.desks[desk] = desk.next().items

    @precondition(lambda self: self.desks)
    @rule(data=some.data(), count=some.integers(0, 2))
    def delivers(self, data, count):
        desk = data.draw(some.sampled_from(list(self.desks)))
        desk.deliver(outcomes(self.desks[desk][:count]), FIGURES)
        self.desks[desk] = self.desks[desk][count:]

    @precondition(lambda self: self.desks)
    @rule(data=some.data(), kindly=some.booleans())
    def goes(self, data, kindly):
        desk = data.draw(some.sampled_from(list(self.desks)))
        del self.desks[desk]
        desk.close() if kindly else desk.abandon("killed")

    @invariant()
    def nothing_is_lost_or_done_twice(self):
        found = {item.id: item for item in self.job.items()}
        assert set(found) == set(range(5))
        for id, finished in self.done.items():
            assert found[id].state == "done" and found[id].finished == finished, "done once is done"
        self.done = {item.id: item.finished for item in found.values() if item.state == "done"}
        running = [item.id for item in found.values() if item.state == "running" and item.owner]
        assert len(running) + len(self.done) + sum(item.state == "pending" for item in found.values()) == 5

    @invariant()
    def what_is_done_is_there(self):
        assert damaged(self.job) == []


TestWorkers = Workers.TestCase
TestWorkers.settings = settings(max_examples=10, stateful_step_count=15)
