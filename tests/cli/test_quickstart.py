"""The main job as scripts/quickstart.sh runs it: two real ranks, the shipped model, cached beside uncached."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
FIELDS = {
    "approximated",
    "baseline_seconds",
    "cached_seconds",
    "collectives_per_step",
    "compute_ratio",
    "computed",
    "ledgers_agree",
    "model",
    "num_images",
    "num_inference_steps",
    "parallel",
    "partial",
    "prompt_accuracy",
    "psnr_db",
    "speedup",
    "ssim",
    "world_size",
}


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    output = tmp_path_factory.mktemp("quickstart")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*torchrun, "-m", "fastcache_xdit", "generate", "--config", "configs/quickstart.yaml"]
    process = subprocess.Popen(
        [*command, "--output", str(output)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        told, errors = process.communicate(timeout=600)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, errors[-4000:]
    return output, told


@pytest.fixture(scope="module")
def figures(job):
    return json.loads((job[0] / "summary.json").read_text())


def test_the_summary_has_every_field(figures):
    assert set(figures) >= FIELDS
    assert (figures["model"], figures["world_size"], figures["num_images"]) == ("shapes-pixart", 2, 12)
    assert figures["parallel"]["ulysses_degree"] == 2


def test_much_is_skipped_and_the_pictures_stay(figures):
    assert figures["compute_ratio"] < 0.6
    assert figures["psnr_db"]["mean"] >= 30
    assert figures["ssim"]["mean"] >= 0.95
    assert figures["prompt_accuracy"]["cached"] >= figures["prompt_accuracy"]["uncached"] - 0.02


def test_counts_add_up_and_ranks_agree(figures):
    requests, blocks = 3, 12
    assert figures["computed"] + figures["approximated"] == requests * blocks * figures["num_inference_steps"]
    assert figures["ledgers_agree"] is True
    # a schedule needs no message to decide; ledgers are compared once, at the end of the request
    assert figures["collectives_per_step"] == pytest.approx(1 / figures["num_inference_steps"])


def test_images_and_report_are_there(job):
    output, told = job
    images = sorted(path.name for path in (output / "images").iterdir())
    assert images == sorted(f"{i:05d}{kind}.png" for i in range(12) for kind in ("", "_uncached"))
    assert Image.open(output / "images" / images[0]).size == (128, 128)
    assert "</html>" in (output / "report.html").read_text()
    assert told.strip().splitlines()[-1].startswith("fastcache: 12 images, ")
