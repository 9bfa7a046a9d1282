"""Jobs that learn: all runs plan by the same file, whoever is killed while it is made."""

from __future__ import annotations

import json
import random
import shutil
import time

import pytest

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.cli.main import main
from fastcache_xdit.jobs.export import damaged
from fastcache_xdit.jobs.learnt import NAME, LearntFile
from fastcache_xdit.jobs.store import Store
from shapes.sampling import prompts
from tests.jobs.launching import SMALL, check_equal, kill, launched, ranks_of, submit, told, wait_for
from tests.jobs.test_ray import replicas_of

COUNT = 40
LEARN = 4
KILLS = 10
LEARNING = ("--cache_config", json.dumps({"learn": LEARN}), "--budget", "0.4")
REPLICAS = ("--data_parallel_degree", "2", "--max_attempts", "1000")
ON_RAY = ("--ray", "--replicas", "2", "--max_attempts", "1000")


@pytest.fixture(autouse=True)
def _own_home(tmp_path, monkeypatch):
    """No test finds what another one's job has learnt."""
    monkeypatch.setenv("FASTCACHE_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A job that one process finished in one go."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTCACHE_HOME", str(folder / "home"))
        job = submit(folder / "job", COUNT, *LEARNING)
        with launched(0, str(job.folder)) as process:
            words = told(process)
    assert process.returncode == 0 and "learnt from 4 requests" in words, words
    return job


def test_the_first_batches_are_recorded_in_full_and_the_rest_is_planned(whole, capsys):
    items = whole.items()
    assert [item.recorded for item in items] == [True] * LEARN + [False] * (COUNT - LEARN)
    assert all(item.compute_ratio == 1 for item in items[:LEARN])
    assert all(item.compute_ratio == 3 / 8 for item in items[LEARN:]), "budget 0.4 of 8 steps"
    assert main(["batch", "status", str(whole.folder)]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert "learnt from 4 requests on " in line and "budget 0.4, 3 of 8 steps computed" in line
    assert "dB promised (worst " in line and "); 4 images were computed in full for it" in line


def test_a_job_that_is_killed_ends_with_the_same_images(tmp_path, whole):
    job = submit(tmp_path / "job", COUNT, *LEARNING)
    moments, kills, while_learning = random.Random(0), 0, 0
    while kills < KILLS:
        assert not job.is_over(), "there is something left to disturb"
        with launched(2, str(job.folder), *REPLICAS) as launcher:
            ranks = ranks_of(launcher, 2)
            wait_for(job, _moment(job, moments), launcher)
            learns = not (job.folder / NAME).exists()
            time.sleep(moments.uniform(0, 1.0 if learns else 0.1))
            moments.shuffle(ranks)
            killed = sum(kill(victim) for victim in ranks if launcher.poll() is None)
            kills, while_learning = kills + killed, while_learning + learns * killed
    is_known = (job.folder / NAME).exists()
    with launched(2, str(job.folder), *REPLICAS) as launcher:
        words = told(launcher)
    assert launcher.returncode == 0, words
    assert while_learning >= 2, "some of the kills fell into the lesson"
    assert words.count("fastcache: on for PixArtTransformer2DModel: learnt from 4 requests") == is_known, "said once"
    check_equal(job, whole)
    assert [item.recorded for item in job.items()] == [item.recorded for item in whole.items()]
    assert _taught(job) == _taught(whole)


def _moment(job, moments) -> int:
    """How many images to wait for: until all is recorded, some more of these, then some more of the others."""
    done = job.counts()["done"]
    return min(LEARN, done + moments.randint(0, 3)) if done < LEARN else done + moments.randint(0, 3)


def _taught(job) -> tuple:
    """What a job has learnt, but for when and how fast."""
    known = Calibration.load(job.folder / NAME)
    return known.stamp, known.facts["masks"], known.facts["promises"], known.facts["latents_db"]


@pytest.mark.parametrize("harm", [lambda content: content[:999], lambda content: content[:-1] + b"?", lambda _: b""])
def test_a_file_that_is_not_whole_is_not_used(tmp_path, whole, harm, caplog):
    shutil.copyfile(whole.folder / NAME, tmp_path / NAME)
    assert LearntFile(tmp_path).read() is not None
    (tmp_path / NAME).write_bytes(harm((tmp_path / NAME).read_bytes()))
    assert LearntFile(tmp_path).read() is None
    assert "the job learns again from the same items" in caplog.text


def test_what_is_damaged_is_made_again_as_it_was(tmp_path, whole):
    shutil.copytree(whole.folder, tmp_path / "job")
    job, before = Store(tmp_path / "job"), _taught(whole)
    (job.folder / NAME).write_bytes((job.folder / NAME).read_bytes()[:-100])
    for id in (1, LEARN + 3):  # one that was recorded, and one that was planned
        (job.folder / f"images/{id:06d}.png").unlink()
    assert job.retry(damaged(job)) == 2
    with launched(0, str(job.folder)) as process:
        words = told(process)
    assert process.returncode == 0 and "learns again from the same items" in words, words
    check_equal(job, whole)
    assert _taught(job) == before


def test_what_cannot_be_learnt_from_gives_its_place_to_the_next(tmp_path):
    lines = [{"prompt": text} for text in prompts(8, 0)]
    lines[0] |= {"width": 32}  # another size than most
    lines[1] |= {"guidance": 1e38}  # not finite
    lines[3] |= {"prompt": "a red circle " * 200}  # too long
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = ("--prompts", str(tmp_path / "lines.jsonl"), "--cache", "fastcache", "--cache_config", '{"learn": 2}')
    assert main(["batch", "submit", str(tmp_path / "job"), *SMALL, *words]) == 0
    with launched(0, str(tmp_path / "job")) as process:
        words = told(process)
    items = Store(tmp_path / "job").items()
    assert "learnt from 2 requests" in words, words
    assert [item.id for item in items if item.state == "failed"] == [1, 3]
    assert [item.id for item in items if item.recorded] == [2, 4]


def test_a_job_with_too_few_batches_is_computed_in_full(tmp_path, capsys):
    job = submit(tmp_path / "job", LEARN - 1, *LEARNING)
    with launched(0, str(job.folder)) as process:
        words = told(process)
    assert process.returncode == 0, words
    assert [(item.recorded, item.compute_ratio) for item in job.items()] == [(True, 1.0)] * (LEARN - 1)
    main(["batch", "status", str(job.folder)])
    assert "planned from other models" in capsys.readouterr().out
    assert not (tmp_path / "home").exists(), "nothing was learnt"


def test_the_ranks_of_a_replica_learn_together(tmp_path):
    job = submit(tmp_path / "job", LEARN + 2, *LEARNING)
    with launched(2, str(job.folder), "--ulysses_degree", "2") as launcher:
        words = told(launcher)
    assert launcher.returncode == 0, words
    assert words.count("learnt from 4 requests") == 1, "said once"
    rows = [(item.state, item.recorded, item.compute_ratio) for item in job.items()]
    assert rows == [("done", True, 1.0)] * LEARN + [("done", False, 3 / 8)] * 2


def test_replicas_on_ray_share_what_one_of_them_learns(tmp_path, whole):
    job = submit(tmp_path / "job", COUNT, *LEARNING)
    with launched(0, str(job.folder), *ON_RAY) as driver:
        wait_for(job, 2, driver)
        assert not (job.folder / NAME).exists() and kill(replicas_of(driver)[0])
        words = told(driver)
    assert driver.returncode == 0, words
    check_equal(job, whole)
    assert _taught(job) == _taught(whole)
