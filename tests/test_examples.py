"""The programs in examples/ run as their first lines say, away from the project's folder."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy
from PIL import Image

from fastcache_xdit.clips import read_frames
from shapes.language import check_picture
from tests.launchers import ROOT

EXAMPLES = ROOT / "examples"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def run(words, folder, said=None):
    """Run an example in a folder of its own, with the package alone on the path, as an editable install has it."""
    (folder / "installed").mkdir()
    (folder / "installed" / "fastcache_xdit").symlink_to(ROOT / "fastcache_xdit")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(folder / "installed"), "OMP_NUM_THREADS": "1"}
    environment["FASTCACHE_HOME"] = str(folder / "home")
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, input=said)
    assert done.returncode == 0, done.stderr
    (folder / "installed" / "stderr.txt").write_text(done.stderr)
    return done.stdout


def picture(path):
    return Image.open(path).convert("RGB")


def accuracy(path, prompt):
    return check_picture(numpy.asarray(picture(path)), prompt).accuracy


def difference(first, second):
    """Mean difference of two pictures, in 0..255."""
    return numpy.abs(numpy.asarray(first, float) - numpy.asarray(second, float)).mean()


def skipped(printed):
    """Calls that the printed report says were approximated or computed in part."""
    return sum(int(number) for number in re.findall(r"(?:approximated|partial) (\d+)", printed))


def test_every_example_is_run_and_short():
    names = {path.name for path in EXAMPLES.iterdir() if path.is_file()}
    text = Path(__file__).read_text()
    assert names and all(f'"{name}"' in text for name in names)
    assert all(len((EXAMPLES / name).read_text().splitlines()) <= 55 for name in names)


def test_a_model_of_ones_own(tmp_path):
    printed = run([sys.executable, EXAMPLES / "own_model.py"], tmp_path)
    assert skipped(printed) == 8 * 7, "at 8 of 20 steps, of 8 blocks all but the lead block"
    assert float(printed.rpartition(" ")[2]) < 1e-3


def test_a_diffusers_pipeline(tmp_path):
    printed = run([sys.executable, EXAMPLES / "diffusers_pipeline.py"], tmp_path)
    prompt = "a red circle left of a blue square on a dark background"
    assert skipped(printed) == 10, "half of 20 steps"
    assert accuracy(tmp_path / "cached.png", prompt) == accuracy(tmp_path / "uncached.png", prompt) > 0.7


def test_a_loop_of_ones_own(tmp_path):
    printed = run([sys.executable, EXAMPLES / "own_loop.py"], tmp_path)
    assert skipped(printed) == 2 * 10, "half of 20 steps, in both branches"
    assert accuracy(tmp_path / "own_loop.png", "a green circle above a yellow triangle on a light background") > 0.7


def test_calibrate_and_tune(tmp_path):
    printed = run([sys.executable, EXAMPLES / "calibrate_and_tune.py"], tmp_path)
    assert "50% of block FLOPs" in printed and skipped(printed) == 48
    assert {path.name for path in tmp_path.iterdir()} == {"installed", "calibration.safetensors", "half.yaml"}


def test_a_script_that_calls_xdit(tmp_path):
    flags = ["--ulysses_degree", "2", "--cache", "fastcache", "--cache_config", '{"learn": 0}']
    printed = run([*TORCHRUN, EXAMPLES / "xdit_script.py", *flags], tmp_path)
    assert skipped(printed) == 10, "half of 20 steps"
    assert accuracy(tmp_path / "xdit_script.png", "a pink square left of an orange circle on a dark background") > 0.7
    heard = (tmp_path / "installed" / "stderr.txt").read_text()
    assert heard.count("fastcache: on for ") == heard.count("fastcache: computed ") == 1, "by one of the two ranks"
    assert heard.index("fastcache: on for ") < heard.index("fastcache: computed "), "the sum comes at the end"
    assert "10 of 20 calls skipped, 50% of the compute, estimated 2.00x faster" in heard


def test_a_batch_job(tmp_path):
    run(["bash", EXAMPLES / "batch_job.sh"], tmp_path)
    with (tmp_path / "my-job.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["done"] * 4


def test_a_clip(tmp_path):
    printed = run([sys.executable, EXAMPLES / "video.py"], tmp_path)
    assert skipped(printed) == 2 * 10, "half of 20 steps, in both calls that guidance makes"
    cached, uncached = (read_frames(tmp_path / f"{name}.mp4") for name in ("cached", "uncached"))
    assert len(cached) == len(uncached) > 1 and difference(cached[-1], uncached[-1]) < 5


def test_an_edit(tmp_path):
    printed = run([sys.executable, EXAMPLES / "edit.py"], tmp_path)
    assert skipped(printed) == 9, "half of the 18 steps that strength leaves"
    before, cached, uncached = (picture(tmp_path / f"{name}.png") for name in ("before", "cached", "uncached"))
    assert difference(cached, uncached) < 2 < difference(before, cached)
    edited = "a yellow square on a dark background"
    assert min(accuracy(tmp_path / f"{name}.png", edited) for name in ("cached", "uncached")) > 0.7


def test_serving_in_a_loop(tmp_path):
    prompt = "a red square on a dark background\n"
    printed = run([sys.executable, EXAMPLES / "serving.py"], tmp_path, said=3 * prompt + f"fast: {prompt}")
    assert skipped(printed) == 10 + 14, "of 20 steps each, half behind the two that were learnt from, and 0.7"
    assert accuracy(tmp_path / "0003.png", prompt.strip()) == 1 and "0003.png in " in printed


def test_the_readme_links_one_of_each_kind():
    readme = (ROOT / "README.md").read_text()
    kinds = ("diffusers_pipeline.py", "xdit_script.py", "video.py", "edit.py", "batch_job.sh", "serving.py")
    assert all(f"/examples/{name}" in readme for name in kinds)


def test_a_local_edit(tmp_path):
    printed = run([sys.executable, EXAMPLES / "local_edit.py"], tmp_path)
    before, after = picture(tmp_path / "before.png"), picture(tmp_path / "after.png")
    left, right = (0, 0, 48, 128), (64, 0, 128, 128)
    assert difference(before.crop(left), after.crop(left)) < 5 < difference(before.crop(right), after.crop(right))
    assert skipped(printed) > 100
    assert accuracy(tmp_path / "after.png", "a red circle left of a green triangle on a dark background") > 0.7
