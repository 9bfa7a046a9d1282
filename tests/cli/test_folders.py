"""Folders of models that one command or the other has no class for: each is run by the command that can, or told."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from fastcache_xdit.clips import read_frames
from fastcache_xdit.errors import UsageError
from fastcache_xdit.host.xdit import kinds
from fastcache_xdit.host.xdit.layout import Layout
from fastcache_xdit.plugin import register
from tests import tiny, tiny_qwen
from tests.parallel.launch import environment

# Answers several command lines in one process, because importing xDiT takes longer than all of them.
ANSWER = """
import json, sys
from fastcache_xdit.cli.main import main
for argv in json.loads(sys.argv[1]):
    print("=====", main(argv), flush=True)
"""
SMALL = ["--prompt", "a red circle", "--height", "64", "--width", "64", "--num_inference_steps", "8"]
CACHED = ["--cache", "fastcache", "--cache_config", '{"learn": 0}']


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("folders")


@pytest.fixture(scope="module")
def told(folder):
    """What was said to each command line, and the exit code."""
    qwen, wan = (str(folder / name) for name in ("qwen", "wan"))
    tiny_qwen.checkpoint(folder / "qwen")
    tiny.checkpoint("wan", folder / "wan")
    lines = [
        ["run", "--model", qwen, *SMALL, *CACHED],
        ["run", "--model", wan, *SMALL, *CACHED, "--num_frames", "5"],
        ["generate", "--model", qwen, *SMALL, *CACHED, "--guidance_scale", "4", "--negative_prompt", "x"],
    ]
    lines = [[*line, "--output", str(folder / str(number))] for number, line in enumerate(lines)]
    command = [sys.executable, "-c", ANSWER, json.dumps(lines)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(command, env=environment(), timeout=300, check=True, **streams)
    parts = done.stdout.split("===== ")
    assert [part[0] for part in parts[1:]] == ["0"] * len(lines), done.stdout[-4000:]
    return parts


def test_what_xdit_has_no_pipeline_for_is_run_by_one_process(told, folder):
    assert "1 image, " in told[2] and "50% of block FLOPs" in told[2]
    assert [path.name for path in (folder / "2" / "images").iterdir()] == ["00000.png"]
    summary = json.loads((folder / "2" / "summary.json").read_text())
    assert summary["compute_ratio"] == 0.5


def test_xdits_runner_runs_qwen_image_from_a_folder(told, folder):
    assert "4 of 8 calls skipped" in told[0]
    assert [path.suffix for path in (folder / "0").glob("*.png")] == [".png"]


def test_clips_of_the_runner_are_written_without_another_package(told, folder):
    assert "8 of 16 calls skipped" in told[1]
    assert [len(read_frames(path)) for path in (folder / "1").glob("*.mp4")] == [5]


def test_several_ranks_are_told_what_runs_it(folder, told):
    register()  # so that xDiT can be asked what it has
    for layout in (Layout(ulysses_degree=2), Layout(data_parallel_degree=2)):
        with pytest.raises(UsageError, match="one process runs it alone, not 2 ranks; start one process; .* take run"):
            kinds.check_alone("QwenImagePipeline", str(folder / "qwen"), layout)


def test_what_needs_a_file_is_sent_to_batch():
    register()
    with pytest.raises(UsageError, match="QwenImageEditPipeline needs image beside each prompt; take batch"):
        kinds.check_alone("QwenImageEditPipeline", "some/model", Layout())
