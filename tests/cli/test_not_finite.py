"""A real job in which one prompt's latents are NaN: the picture is named and counted, and the others are there."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from fastcache_xdit.shipped import model_path

ROOT = Path(__file__).parents[2]
FINE, BROKEN = "a red circle on a dark background", "a red triangle on a dark background"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The small model, whose text encoder says NaN of one word."""
    folder = tmp_path_factory.mktemp("model") / "pixart"
    shutil.copytree(model_path("shapes-pixart"), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    (word,) = set(tokenizer(BROKEN).input_ids) - set(tokenizer(FINE).input_ids)
    file = folder / "text_encoder" / "model.safetensors"
    weights = load_file(file)
    weights["shared.weight"][word] = float("nan")
    save_file(weights, file, {"format": "pt"})
    return folder


def test_a_picture_that_is_not_finite_is_named_and_the_others_are_kept(model, tmp_path):
    size = ["--height", "128", "--width", "128", "--num_inference_steps", "4", "--max_sequence_length", "32"]
    prompts = ["--prompt", FINE, BROKEN, FINE]
    words = ["generate", "--model", str(model), *prompts, *size, "--cache", "fastcache", "--output", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "fastcache_xdit", *words],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "FASTCACHE_HOME": str(tmp_path / "home")},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr[-2000:]
    assert "3 images, 1 NOT FINITE and not kept (1): lower guidance" in done.stdout
    assert json.loads((tmp_path / "summary.json").read_text())["not_finite"] == {"cached": [1]}
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["00000.png", "00002.png"]
    assert "Traceback" not in done.stderr
