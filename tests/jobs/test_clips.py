"""Jobs that make clips: mp4 files, the same ones whoever is killed on the way."""

from __future__ import annotations

import av
import pytest

from fastcache_xdit.cli.main import main
from fastcache_xdit.jobs.export import damaged
from fastcache_xdit.jobs.store import Store
from shapes.videos import clip_prompts
from tests.jobs.launching import kill, launched, ranks_of, told, wait_for

COUNT, FRAMES, FPS = 8, 9, 12
CALL = ["--model", "shapes-video", "--num_inference_steps", "6", "--fps", str(FPS)]
CACHED = ["--cache", "fastcache", "--cache_config", '{"learn": 2}']


def submit(folder):
    prompts = folder.with_suffix(".txt")
    prompts.write_text("\n".join(clip_prompts(COUNT, 0)))
    assert main(["batch", "submit", str(folder), "--prompts", str(prompts), *CALL, *CACHED]) == 0
    return Store(folder)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    # each job of this file learns for itself: what the user's folder knows would be used otherwise
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTCACHE_HOME", str(tmp_path_factory.mktemp("home")))
        yield finished(tmp_path_factory)


def finished(tmp_path_factory):
    job = submit(tmp_path_factory.mktemp("clips") / "job")
    with launched(0, str(job.folder)) as process:
        words = told(process)
    assert process.returncode == 0, words
    return job


def test_every_item_becomes_a_clip_that_plays(undisturbed):
    files = sorted((undisturbed.folder / "images").iterdir())
    assert [file.name for file in files] == [f"{index:06d}.mp4" for index in range(COUNT)]
    with av.open(str(files[-1])) as file:
        assert file.streams.video[0].average_rate == FPS
        assert sum(1 for _ in file.decode(video=0)) == FRAMES


def test_clips_do_not_depend_on_who_is_killed(undisturbed, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTCACHE_HOME", str(tmp_path / "home"))
    job = submit(tmp_path / "job")
    for done in (1, 4):
        with launched(2, str(job.folder), "--data_parallel_degree", "2") as launcher:
            ranks = ranks_of(launcher, 2)
            wait_for(job, done, launcher)
            assert all([kill(rank) for rank in ranks])
    with launched(2, str(job.folder), "--data_parallel_degree", "2") as launcher:
        words = told(launcher)
    assert launcher.returncode == 0, words
    assert [item.checksum for item in job.items()] == [item.checksum for item in undisturbed.items()]
    assert None not in [item.checksum for item in job.items()] and damaged(job) == []
