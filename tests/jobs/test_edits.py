"""Jobs that edit images and clips: they run, learn and go on after a crash as text jobs do."""

from __future__ import annotations

import json

import av
import diffusers
import numpy as np
import pytest
from PIL import Image

from fastcache_xdit.cli.main import main
from fastcache_xdit.clips import Clip
from fastcache_xdit.jobs.export import damaged
from fastcache_xdit.jobs.store import Store
from shapes.shapes import draw, parse
from shapes.videos import draw_clips, parse_clip
from tests import tiny
from tests.jobs.launching import kill, launched, ranks_of, told, wait_for
from tests.models.parts import awake

COLOURS = ("red", "blue", "green", "orange", "pink", "cyan")
CACHED = ["--cache", "fastcache", "--cache_config", '{"learn": 2}', "--num_inference_steps", "10"]


def picture(values):
    return Image.fromarray(((values + 1) * 127.5).permute(1, 2, 0).round().byte().numpy())


def submit(folder, lines, *words):
    folder.mkdir(exist_ok=True)
    (folder / "edits.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = ["--prompts", str(folder / "edits.jsonl"), *words, *CACHED]
    assert main(["batch", "submit", str(folder / "job"), *words]) == 0
    return Store(folder / "job")


def edit_images(folder):
    folder.mkdir(exist_ok=True)
    lines = []
    for number, colour in enumerate(COLOURS):
        scene = f"a {colour} circle on a dark background"
        picture(draw(parse(scene))).save(folder / f"{number}.png")
        lines.append({"prompt": scene.replace("circle", "square"), "image": f"{number}.png", "strength": 0.8})
    lines.append({"prompt": "a red square on a dark background", "image": "1.png", "strength": 0.1})
    return submit(folder, lines, "--model", "shapes-flux", "--pipeline", "FluxImg2ImgPipeline")


def run(job, ranks=0, *words):
    with launched(ranks, str(job.folder), *words) as process:
        words = told(process)
    assert process.returncode == 0, words
    assert {item.state for item in job.items()} == {"done"} and damaged(job) == []
    return job


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Each job learns for itself: what the user's folder knows would be used otherwise."""
    return lambda name: monkeypatch.setenv("FASTCACHE_HOME", str(tmp_path / name))


def test_images_are_edited_and_do_not_depend_on_who_is_killed(tmp_path, home):
    home("one")
    undisturbed = run(edit_images(tmp_path / "undisturbed"))
    home("two")
    job = edit_images(tmp_path / "killed")
    with launched(2, str(job.folder), "--data_parallel_degree", "2") as launcher:
        ranks = ranks_of(launcher, 2)
        wait_for(job, 3, launcher)
        assert all([kill(rank) for rank in ranks])
    run(job, 2, "--data_parallel_degree", "2")
    assert [item.checksum for item in job.items()] == [item.checksum for item in undisturbed.items()]
    assert sum(item.recorded for item in job.items()) == 2 and any(item.approximated for item in job.items())
    given, made = (np.asarray(Image.open(path), float) for path in (tmp_path / "killed" / "1.png", output(job, -1)))
    assert np.abs(given - made).mean() < 8, "a strength of a tenth changes little"


def test_a_folder_with_a_controlnet_follows_the_picture_of_each_line(tmp_path, home):
    home("one")
    made = tiny.pipeline("flux", text=True)
    size = {"num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 4}
    net = diffusers.FluxControlNetModel.from_transformer(made.transformer, **size, load_weights_from_transformer=False)
    diffusers.FluxControlNetPipeline(**made.components, controlnet=awake(net)).save_pretrained(tmp_path / "model")
    lines = []
    for colour in COLOURS[:2]:
        picture(draw(parse(f"a {colour} circle on a dark background"))).save(tmp_path / f"{colour}.png")
        lines.append({"prompt": "a circle", "seed": 1, "control_image": f"{colour}.png", "width": 64, "height": 64})
    lines.append(lines[0])
    job = run(submit(tmp_path, lines, "--model", str(tmp_path / "model")))
    first, second, again = job.items()
    assert first.checksum != second.checksum, "they differ in the picture alone"
    assert first.recorded and second.recorded and again.approximated


def output(job, number):
    return job.folder / job.items()[number].output


def test_clips_are_edited(tmp_path, home):
    home("one")
    lines = []
    for number, colour in enumerate(COLOURS[:3]):
        scene = f"a {colour} circle moving left on a dark background"
        frames = draw_clips([parse_clip(scene)])[0].transpose(0, 1)
        (tmp_path / f"{number}.mp4").write_bytes(Clip(tuple(map(picture, frames)), 16).mp4())
        lines.append({"prompt": scene.replace("circle", "square"), "video": f"{number}.mp4", "strength": 0.6})
    lines.append({**lines[0], "num_frames": 5})
    job = run(submit(tmp_path, lines, "--model", "shapes-video", "--pipeline", "WanVideoToVideoPipeline"))
    assert [frames_in(output(job, number)) for number in (0, -1)] == [9, 5]
    assert any(item.approximated for item in job.items())


def frames_in(file):
    with av.open(str(file)) as container:
        return sum(1 for _ in container.decode(video=0))
