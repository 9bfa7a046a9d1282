"""Files of items: what is said of wrong ones before any model loads, and what a job keeps of the right ones."""

from __future__ import annotations

import json

import numpy
import pytest
from PIL import Image

from fastcache_xdit.cli.main import main
from fastcache_xdit.clips import Clip
from fastcache_xdit.errors import UsageError
from fastcache_xdit.files import checksum
from fastcache_xdit.jobs.inputs import call_files
from fastcache_xdit.jobs.prompts import read_prompts
from fastcache_xdit.jobs.recipe import BadLine, PromptLine
from fastcache_xdit.jobs.store import Store
from tests.jobs.jobs import items

FRAMES = 3
EDIT = ["--model", "shapes-flux", "--pipeline", "FluxImg2ImgPipeline"]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pics").mkdir()
    Image.new("RGB", (32, 32), (200, 0, 0)).save(tmp_path / "pics" / "red.png")
    Image.new("RGB", (32, 32), (255, 255, 255)).save(tmp_path / "pics" / "mask.png")
    Image.new("L", (32, 64), 255).save(tmp_path / "pics" / "tall.png")
    frames = tuple(Image.new("RGB", (32, 32), (0, 60 * number, 0)) for number in range(FRAMES))
    (tmp_path / "pics" / "clip.mp4").write_bytes(Clip(frames, 8).mp4())
    return tmp_path


def write(folder, *lines):
    file = folder / "edits.jsonl"
    file.write_text("\n\n".join(json.dumps({"prompt": "a", **line}) for line in lines))
    return file


@pytest.mark.parametrize(
    "line, reason",
    [
        ({"image": "none.png"}, "image none.png: no such file; paths begin at the folder of the prompts file"),
        ({"image": "x" * 200}, "no such file"),
        ({"image": "https://here/red.png"}, "image https://here/red.png: URLs are not read; download it first"),
        (
            {"image": "pics/red.png", "mask": "pics/tall.png"},
            "mask pics/tall.png: it has 32 x 64 pixels, and its image",
        ),
        ({"seed": -1}, "option 'seed'"),
        ({"mask_image": "pics/mask.png"}, "unknown option 'mask_image'; did you mean 'mask'?"),
        ({"image": "pics"}, "image pics: this is a folder; name one file in it for each line"),
        ({"image": "edits.jsonl"}, "image edits.jsonl: not an image that can be read"),
        ({"mask": "pics/clip.mp4"}, "mask pics/clip.mp4: not an image that can be read"),
        ({"video": "edits.jsonl"}, "video edits.jsonl: not a clip that can be read"),
        ({"video": "pics/clip.mp4", "num_frames": 4}, "it has 3 frames, fewer than num_frames=4"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_with_file_and_line(folder, line, reason):
    good, bad = read_prompts(write(folder, {}, line))
    assert isinstance(good, PromptLine) and isinstance(bad, BadLine)
    assert bad.reason.startswith("edits.jsonl, line 3: ") and reason in bad.reason


def test_lines_of_tables_are_counted_as_the_file_counts_them(folder):
    (folder / "edits.csv").write_text('prompt,image\n"a\nb",pics/red.png\nc,none.png\n')
    good, bad = read_prompts(folder / "edits.csv")
    assert good.image == str(folder / "pics" / "red.png") and "edits.csv, line 4: image none.png" in bad.reason


@pytest.mark.parametrize("values", [{"strength": 0}, {"strength": 1.5}, {"num_frames": 0}, {"image": 5}])
def test_values_have_limits(folder, values):
    (bad,) = read_prompts(write(folder, values))
    assert next(iter(values)) in bad.reason


def test_a_path_may_begin_at_home(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    (line,) = read_prompts(write(folder, {"image": "~/pics/red.png"}))
    assert line.image == str(folder / "pics" / "red.png")


def test_depth_maps_of_16_bits_and_turned_photographs_are_read_as_they_look(folder):
    depth = numpy.linspace(0, 65535, 32 * 16).astype(numpy.uint16).reshape(32, 16)
    Image.fromarray(depth).save(folder / "pics" / "depth.png")
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held upright
    Image.new("RGB", (32, 16)).save(folder / "pics" / "photo.jpg", exif=turned)
    job = submit(folder, [{"image": "pics/depth.png"}, {"image": "pics/photo.jpg"}], *EDIT)
    read, photo = (call_files(item, job.folder)["image"] for item in job.items())
    assert numpy.abs(numpy.asarray(read)[..., 0] - depth / 257).max() <= 0.5
    assert photo.size == (16, 32)


def submit(folder, lines, *words):
    assert main(["batch", "submit", str(folder / "job"), "--prompts", str(write(folder, *lines)), *words]) == 0
    return Store(folder / "job")


@pytest.mark.parametrize(
    "words, line, reason",
    [
        (EDIT, {}, "FluxImg2ImgPipeline needs a file as image on each line"),
        (
            EDIT,
            {"image": "pics/red.png", "mask": "pics/mask.png"},
            "FluxImg2ImgPipeline takes no mask; leave it out, or name a class that takes it with --pipeline, such as "
            "FluxInpaintPipeline",
        ),
        (EDIT, {"image": "pics/red.png", "control_image": "pics/red.png"}, "such as FluxControlNetPipeline"),
        (EDIT, {"image": "pics/red.png", "num_frames": 5}, "FluxImg2ImgPipeline takes no num_frames"),
        (EDIT[:2], {"image": "pics/red.png"}, "FluxPipeline takes no image; leave it out, or name a class"),
        (["--model", "some/model"], {"strength": 0.5}, "a model without --pipeline takes no strength"),
    ],
)
def test_what_the_pipeline_does_not_take_fails_at_submit(folder, words, line, reason):
    (item,) = submit(folder, [line], *words).items()
    assert item.state == "failed" and item.error.startswith("edits.jsonl, line 1: ") and reason in item.error


@pytest.mark.parametrize(
    "kind, words, told",
    [
        ("NoPipeline", [], "diffusers has no pipeline NoPipeline"),
        ("WanVideoToVideoPipeline", [], "WanVideoToVideoPipeline needs a WanTransformer3DModel, and "),
        ("FluxControlNetPipeline", [], "FluxControlNetPipeline needs controlnet, which"),
        ("StableDiffusionImg2ImgPipeline", [], "needs unet, which"),
        ("LTXImageToVideoPipeline", [], "LTXImageToVideoPipeline makes videos; of these, WanPipeline"),
        ("DiffusionPipeline", [], "DiffusionPipeline names no single pipeline; give a class such as"),
        ("AutoPipelineForImage2Image", [], "names no single pipeline"),
        ("FluxImg2ImagePipeline", [], "no pipeline FluxImg2ImagePipeline; did you mean FluxImg2ImgPipeline"),
        ("FluxControlPipeline", [], "FluxControlPipeline is not taken"),
        ("FluxImg2ImgPipeline", ["--ulysses_degree", "2"], "xDiT has no FluxImg2ImgPipeline, so one process"),
    ],
)
def test_a_class_that_cannot_run_is_refused_by_name(folder, capsys, kind, words, told):
    words = ["--prompts", str(write(folder, {})), "--model", "shapes-flux", "--pipeline", kind, *words]
    assert main(["batch", "submit", str(folder / "job"), *words]) == 2
    assert told in capsys.readouterr().err and not (folder / "job").exists()


def test_a_job_keeps_its_files_whatever_becomes_of_them(folder):
    job = submit(folder, [{"image": "pics/red.png", "strength": 0.5}] * 2, *EDIT)
    content = (folder / "pics" / "red.png").read_bytes()
    (folder / "pics" / "red.png").unlink()
    first, second = job.items()
    assert first.image == second.image == f"inputs/{checksum(content)}.png"
    assert call_files(first, job.folder)["image"].getpixel((0, 0)) == (200, 0, 0)
    (job.folder / first.image).write_bytes(b"altered")
    with pytest.raises(UsageError, match="gone or altered; submit the job again"):
        call_files(first, job.folder)


def test_a_clip_is_read_as_far_as_it_is_asked_for(folder):
    job = submit(
        folder,
        [{"video": "pics/clip.mp4"}, {"video": "pics/clip.mp4", "num_frames": 2}],
        *("--model", "shapes-video", "--pipeline", "WanVideoToVideoPipeline"),
    )
    assert [len(call_files(item, job.folder)["video"]) for item in job.items()] == [FRAMES, 2]


def test_machines_of_a_cluster_do_not_see_the_files(folder, capsys):
    job = submit(folder, [{"image": "pics/red.png"}], *EDIT)
    assert main(["batch", "run", str(job.folder), "--ray"]) == 2
    assert "leave --ray out, set data_parallel_degree" in capsys.readouterr().err


def test_only_what_one_call_takes_shares_a_batch():
    lines = [{"image": "a"}, {"image": "b"}, {}, {"image": "c", "strength": 0.5}, {"video": "d"}, {"video": "d"}]
    assert [item.batch for item in items([{"prompt": "x", **line} for line in lines], batch_size=2)] == [
        0,
        0,
        1,
        2,
        3,
        4,
    ]
