"""The main job as scripts/quickstart.sh runs it: two real ranks learn a shipped model on its first pictures."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from fastcache_xdit.home import Home

ROOT = Path(__file__).parents[2]
STEPS, BUDGET = 20, 0.5
PICTURES, REQUESTS, RECORDED = 20, 10, 4
TOGETHER = PICTURES // REQUESTS
FIELDS = {
    "after_switch",
    "approximated",
    "baseline_seconds",
    "cached_seconds",
    "collectives_per_step",
    "compute_ratio",
    "computed",
    "learning",
    "ledgers_agree",
    "model",
    "num_images",
    "num_images_in_full",
    "num_inference_steps",
    "parallel",
    "partial",
    "plan",
    "promised_db",
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
        env={**os.environ, "OMP_NUM_THREADS": "1", "FASTCACHE_HOME": str(output / "home")},
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
    assert (figures["model"], figures["world_size"], figures["num_images"]) == ("shapes-pixart", 2, PICTURES)
    assert figures["parallel"]["ulysses_degree"] == 2


def test_both_ranks_switch_at_the_same_request(figures):
    assert figures["learning"]["requests_by_rank"] == [RECORDED, RECORDED]
    assert figures["after_switch"]["first_request"] == RECORDED
    assert figures["after_switch"]["num_images"] == PICTURES - RECORDED * TOGETHER
    assert figures["ledgers_agree"] is True
    assert 0 < figures["learning"]["seconds"] < figures["cached_seconds"]


def test_what_was_promised_is_what_comes(figures):
    assert figures["promised_db"] > 30
    assert figures["after_switch"]["psnr_db"]["mean"] == pytest.approx(figures["promised_db"], abs=4)
    assert figures["ssim"]["mean"] >= 0.95
    assert figures["prompt_accuracy"]["cached"] >= figures["prompt_accuracy"]["uncached"] - 0.02


def test_the_budget_is_kept_since_the_switch(figures):
    assert figures["after_switch"]["compute_ratio"] == pytest.approx(BUDGET)
    recorded, others = RECORDED * STEPS, (REQUESTS - RECORDED) * STEPS
    assert figures["computed"] == recorded + BUDGET * others, "what learning computed is not counted"
    assert figures["approximated"] == (1 - BUDGET) * others
    # a plan needs no message to decide; ledgers are compared once, at the end of the request
    assert figures["collectives_per_step"] == pytest.approx(1 / STEPS)


def test_pictures_that_were_learnt_from_are_those_without_the_cache(job, figures):
    def differs(index):
        pair = [Image.open(job[0] / "images" / f"{index:05d}{kind}.png") for kind in ("", "_uncached")]
        return ImageChops.difference(*pair).getbbox() is not None

    in_full = RECORDED * TOGETHER
    assert [differs(index) for index in range(PICTURES)] == [False] * in_full + [True] * (PICTURES - in_full)
    assert figures["num_images_in_full"] == in_full


def test_what_was_learnt_is_kept_for_the_next_process(job, figures):
    (kept,) = Home(job[0] / "home").listed()
    assert (kept.facts["requests"], kept.steps) == (RECORDED, STEPS)
    assert kept.facts["promises"][str(round(BUDGET * STEPS))] == figures["promised_db"]


def test_images_and_report_are_there(job, figures):
    output, told = job
    images = sorted(path.name for path in (output / "images").iterdir())
    assert images == sorted(f"{i:05d}{kind}.png" for i in range(PICTURES) for kind in ("", "_uncached"))
    assert Image.open(output / "images" / images[0]).size == (128, 128)
    html = (output / "report.html").read_text()
    before, after = html.split('<div class="switch">')
    assert before.count('class="cell computed"') == RECORDED * STEPS and 'class="cell skipped"' not in before
    assert after.count('class="cell skipped"') == figures["approximated"] and figures["plan"] in after
    last = told.strip().splitlines()[-1]
    assert last.startswith(f"fastcache: {PICTURES} images, learnt from the first {RECORDED} requests in ")
