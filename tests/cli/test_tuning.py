"""calibrate, interrupted and continued, then tune, then generate with the config that came out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fastcache_xdit.approx.calibration import Calibration
from tests import tiny

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = [
    "a red circle on a dark background",
    "a blue square on a light background",
    "a pink triangle on a dark background",
]
STEPS = 8
GENERATE = ("generate", "--cache", "fastcache", "--prompt", PROMPTS[0], "--num_inference_steps", STEPS)


def command(*words, check=True):
    line = [sys.executable, "-m", "fastcache_xdit", *map(str, words)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=600, env={**os.environ})
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("tuning")
    (made / "prompts.txt").write_text("\n".join(PROMPTS))
    return made


@pytest.fixture(scope="module")
def calibration(folder):
    path = folder / "cal.safetensors"
    model = ("--model", "shapes-pixart", "--prompts", folder / "prompts.txt", "--num_inference_steps", STEPS)
    command("calibrate", *model, "--batch_size", 1, "--lead_blocks", 0, 1, "--maps", "--output", path)
    return path


@pytest.fixture(scope="module")
def tuned(folder, calibration):
    path = folder / "presets" / "half.yaml"
    prompts = folder / "prompts.txt"
    found = command(
        "tune", "--model", "shapes-pixart", "--prompts", prompts, "--refit_prompts", prompts, "--batch_size", 1,
        "--calibration", calibration, "--target", "budget=0.5", "--steps", STEPS, 6, "--evaluations", 4,
        "--polish", 2, "--output", path,
    )  # fmt: skip
    assert "generations of 3 prompts" in found.stdout and "refitted: " in found.stdout
    assert "trained 2 batches" in found.stdout and "polished: " in found.stdout
    return path


def test_a_calibration_holds_what_it_measured(calibration, folder):
    found = Calibration.load(calibration)
    assert len(found.sigmas) == STEPS and found.facts["call"]["guidance_scale"] == 2.5
    main = "transformer_blocks.1..transformer_blocks.11"
    assert set(found.moments) == {main, "transformer_blocks.0..transformer_blocks.11"}
    assert found.spread[main]["dof"] > 0 and all(gain > 0 for gain in found.gains[main])
    assert sorted(each.name for each in folder.iterdir() if each.name.startswith("cal")) == ["cal.safetensors"]


def test_a_tuned_config_is_within_budget_and_runs(tuned, folder):
    values = yaml.safe_load(tuned.read_text())
    assert [(steps, mask.count("1")) for steps, mask in values["schedule"].items()] == [(STEPS, 4), (6, 3)]
    calibration = Calibration.load(tuned.parent / values["calibration"])
    assert {len(each.sigmas) for each in calibration.refits} <= {STEPS, 6}
    assert not list(tuned.parent.glob("*.working"))
    output = folder / "images"
    command(*GENERATE, "--model", "shapes-pixart", "--cache_config", tuned, "--compare", "--output", output)
    summary = json.loads((output / "summary.json").read_text())
    assert summary["compute_ratio"] == pytest.approx(0.5)
    assert summary["psnr_db"]["mean"] > 15


def test_the_papers_matrices_run(calibration, folder):
    values = {"calibration": str(calibration), "stand_in": "affine", "affine_rank": 8, "test": "none"}
    output, schedule = folder / "affine", {"schedule": {STEPS: "11111101"}}
    config = json.dumps(values | schedule)
    command(*GENERATE, "--model", "shapes-pixart", "--cache_config", config, "--compare", "--output", output)
    assert json.loads((output / "summary.json").read_text())["psnr_db"]["mean"] > 15


def test_a_calibration_of_another_model_is_refused(tuned, folder):
    values = yaml.safe_load(tuned.read_text()) | {"calibration": str(folder / "cal.safetensors")}
    model = tiny.checkpoint("pixart", folder / "other")
    size = ("--height", 64, "--width", 64)
    done = command(*GENERATE, "--model", model, "--cache_config", json.dumps(values), *size, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "the calibration was made for another model: model_config is" in done.stderr
