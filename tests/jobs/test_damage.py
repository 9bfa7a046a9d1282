"""Damaged, foreign and unwritable jobs: one line that says what is wrong, and nothing of anybody's is touched."""

from __future__ import annotations

import contextlib
import csv
import json
import shutil
import sqlite3
import subprocess

import pytest

from fastcache_xdit.cli.main import main
from fastcache_xdit.files import beside
from fastcache_xdit.jobs.database import Database
from fastcache_xdit.jobs.desk import StoreDesk
from fastcache_xdit.jobs.export import export
from fastcache_xdit.jobs.schema import COLUMNS, VERSION
from fastcache_xdit.jobs.store import Store
from tests.jobs.jobs import FIGURES, items, outcomes, recipe, store


@pytest.fixture
def told(capsys):
    def told(*words):
        """What `batch` complains of with these words, in one line."""
        assert main(["batch", *map(str, words)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return told


def _change(folder, *statements):
    with contextlib.closing(sqlite3.connect(folder / "job.sqlite")) as database:
        for statement in statements:
            database.execute(statement)
        database.commit()


@pytest.mark.parametrize(
    "harm, reason",
    [
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), "is damaged"),
        (lambda path: path.write_bytes(b"x" * 9000), "is damaged (file is not a database)"),
        (lambda path: path.write_bytes(b""), "was interrupted; submit again"),
        (lambda path: path.unlink(), "cannot be opened"),
        (lambda path: _change(path.parent, "PRAGMA user_version = 99"), "a later version of fastcache_xdit (format 99"),
    ],
)
@pytest.mark.parametrize("action", ["status", "retry"])
def test_a_damaged_store_is_told(tmp_path, told, action, harm, reason):
    store(tmp_path, 3).close()
    with contextlib.suppress(FileNotFoundError):
        (tmp_path / "job.sqlite-wal").unlink()
    harm(tmp_path / "job.sqlite")
    assert reason in told(action, tmp_path)


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"{", "recipe.json: "),
        (b"\xff\xfe", "recipe.json: "),
        (b"[" * 100_000, "recipe.json: "),
        (recipe(cache={"bugdet": 1}).model_dump_json().encode(), "recipe.json: unknown option 'bugdet'"),
        (recipe(engine={"ray": "198.51.100.7:6379"}).model_dump_json().encode(), "ray is not for a job to set"),
        (recipe(engine={"job": "/elsewhere"}).model_dump_json().encode(), "job is not for a job to set"),
        (recipe(engine={"trust_remote_code": True}).model_dump_json().encode(), "trust_remote_code is not for a job"),
    ],
)
def test_a_recipe_that_is_damaged_or_asks_for_more_than_a_layout_is_told(tmp_path, told, content, reason):
    store(tmp_path, 1)
    (tmp_path / "recipe.json").write_bytes(content)
    assert reason in told("run", tmp_path)


def test_a_store_from_before_there_were_versions_goes_on(tmp_path):
    job = store(tmp_path, 2)
    desk = StoreDesk(job)
    desk.deliver(outcomes(desk.next().items), FIGURES)
    desk.close()
    before = job.items()
    job.close()
    _change(tmp_path, "DROP TABLE owners", "ALTER TABLE items DROP COLUMN recorded", "PRAGMA user_version = 0")
    job = Store(tmp_path)
    assert job.items() == before
    assert Database(tmp_path).rows("PRAGMA user_version") == [{"user_version": VERSION}]
    assert {row["name"] for row in Database(tmp_path).rows("PRAGMA table_info(items)")} == set(COLUMNS)
    desk = StoreDesk(job)
    desk.deliver(outcomes(desk.next().items), FIGURES)
    assert job.counts()["done"] == 2


@contextlib.contextmanager
def mounted(folder, *options):
    folder.mkdir(exist_ok=True)
    if subprocess.run(["mount", *options, folder], capture_output=True).returncode:
        pytest.skip("only root may mount")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_job_that_cannot_be_written_to_is_read(tmp_path, told, capsys):
    job = store(tmp_path / "job", 2)
    job.close()
    with mounted(tmp_path / "job", "--bind", tmp_path / "job"):
        subprocess.run(["mount", "-o", "remount,ro,bind", tmp_path / "job"], check=True)
        assert main(["batch", "status", str(tmp_path / "job")]) == 75
        assert main(["batch", "export", str(tmp_path / "job"), "--output", str(tmp_path / "x.csv")]) == 0
        capsys.readouterr()
        assert "job.sqlite cannot be written to" in told("retry", tmp_path / "job")


def test_on_a_full_disk_nothing_is_lost(tmp_path, told):
    (tmp_path / "p.txt").write_text("\n".join(f"prompt {n}" for n in range(3000)))
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=256k", "tmpfs"):
        folder = tmp_path / "disk" / "job"
        words = "submit", folder, "--model", "shapes-pixart", "--prompts", tmp_path / "p.txt"
        assert "no room left" in told(*words) or "No space left" in told(*words)
        shutil.rmtree(folder)
        job = store(folder, 3)
        desk = StoreDesk(job)
        first, second = desk.next().items, desk.next().items
        desk.deliver(outcomes(first), FIGURES)
        big = [outcome.__class__(outcome.id, image=b"x" * 400_000) for outcome in outcomes(second)]
        with pytest.raises(OSError, match="No space left on device.*images/000001.png"):
            desk.deliver(big, FIGURES)
        assert [path.name for path in (folder / "images").iterdir()] == ["000000.png"]
        desk.close()
        assert job.counts() == {"pending": 2, "running": 0, "done": 1, "failed": 0}
        desk = StoreDesk(job)
        desk.deliver(outcomes(desk.next().items), FIGURES)
        job.close()


def test_a_folder_that_is_gone_or_in_the_way_is_told(tmp_path, told):
    job = store(tmp_path / "job", 1)
    desk = StoreDesk(job)
    taken = desk.next().items
    (tmp_path / "job").rename(tmp_path / "moved")
    with pytest.raises(OSError, match="job/images/000000.png"):
        desk.deliver(outcomes(taken), FIGURES)
    assert "it is a folder" in told("export", tmp_path / "moved", "--output", tmp_path)


def test_the_status_of_somebody_elses_job_removes_nothing(tmp_path, told):
    store(tmp_path / "job", 1).close()
    (tmp_path / "precious").write_text("")
    (tmp_path / "job" / "owners").mkdir(exist_ok=True)
    for owner in ("../../precious", str(tmp_path / "precious"), "g" * 32):
        _change(tmp_path / "job", f"UPDATE items SET state = 'running', owner = '{owner}'")
        assert "is damaged (an owner is no name" in told("status", tmp_path / "job")
    _change(tmp_path / "job", "UPDATE items SET state = 'pending', owner = NULL, output = '../../precious'")
    assert "is damaged (option 'output'" in told("export", tmp_path / "job", "--output", tmp_path / "x.csv")
    assert (tmp_path / "precious").exists()


def test_what_is_written_beside_a_file_follows_no_link_and_has_no_name_that_can_be_foreseen(tmp_path, monkeypatch):
    (tmp_path / "precious").write_text("kept")
    with beside(tmp_path / "x") as one, beside(tmp_path / "x") as two:
        assert one != two and one.stat().st_size == 0
    name = one.name.removeprefix("x.").removesuffix(".partial")
    (tmp_path / one.name).symlink_to(tmp_path / "precious")
    monkeypatch.setattr("uuid.uuid4", lambda: type("Known", (), {"hex": name}))
    with pytest.raises(FileExistsError), beside(tmp_path / "x"):
        pass
    assert (tmp_path / "precious").read_text() == "kept" and (tmp_path / one.name).is_symlink()


@pytest.mark.parametrize("prompt", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_a_spreadsheet_carries_out_no_prompt(tmp_path, prompt):
    job = Store.create(tmp_path / "job", recipe(), items([{"prompt": prompt}]))
    export(job, tmp_path / "x.csv")
    (row,) = csv.DictReader((tmp_path / "x.csv").open(newline=""))
    assert row["prompt"] == f"'{prompt}" and row["steps"] == "4"
    export(job, tmp_path / "x.jsonl")
    assert json.loads((tmp_path / "x.jsonl").read_text())["prompt"] == prompt, "a program reads it as it was"
