"""An interrupted job ends in one line, and its pictures do not mix with those of the next one in the same folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from datetime import timedelta

import pytest

from fastcache_xdit.cli.main import main
from fastcache_xdit.cli.progress import progress
from fastcache_xdit.errors import UsageError
from fastcache_xdit.evaluate.output import OutputFolder
from fastcache_xdit.host.xdit import world
from tests.parallel.launch import free_port

PROMPTS = ["a red circle on a dark background"] * 50
GENERATE = ["generate", "--model", "shapes-pixart", "--prompt", *PROMPTS, "--num_inference_steps", "2"]


@pytest.fixture(autouse=True)
def interruptible():
    """Let SIGINT interrupt this process and its children, also where a shell started the tests in its background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupted_job_ends_in_one_line_and_is_not_mixed_with_the_next(tmp_path, capsys):
    command = [sys.executable, "-m", "fastcache_xdit", *GENERATE, "--output", str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        while process.poll() is None and len(list(tmp_path.glob("images/*.png"))) < 2:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=60)[1]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    lines = errors.splitlines()
    assert process.returncode == 130 and "Traceback" not in errors
    assert lines[-1] == "fastcache_xdit: interrupted; what was finished by then is kept"
    assert lines[:3] == [
        "fastcache: loading shapes-pixart",
        "fastcache: generating 50 in 50 calls",
        "fastcache: 1 of 50 calls done",
    ]
    assert all(line.endswith(" of 50 calls done") for line in lines[2:-1]), "no bars where there is no terminal"
    assert main([*GENERATE, "--output", str(tmp_path)]) == 2
    assert "holds pictures of a job that was interrupted" in capsys.readouterr().err


def test_a_terminal_has_one_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(progress([("a",), ("b",)])) == [("a",), ("b",)]
    told = capsys.readouterr().err
    assert "2/2" in told and told.count("\n") == 1 and "calls done" not in told


def test_one_rank_of_many_says_so(capsys, monkeypatch):
    monkeypatch.setattr("fastcache_xdit.cli.models.all_tried", lambda: signal.raise_signal(signal.SIGINT))
    for rank, said in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        assert main(["models"]) == 130 and len(capsys.readouterr().err.splitlines()) == said


def test_overwriting_removes_pictures_of_the_earlier_job_alone(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("00007.png", "00007_uncached.png", "00001.mp4", "mine.png"):
        (tmp_path / "images" / name).touch()
    with pytest.raises(UsageError, match="interrupted; pass --overwrite"):
        OutputFolder(tmp_path, overwrite=False)
    OutputFolder(tmp_path, overwrite=True).clear()
    assert [file.name for file in (tmp_path / "images").iterdir()] == ["mine.png"]
    OutputFolder(tmp_path, overwrite=False)


def test_a_rank_whose_torchrun_has_ended_ends(monkeypatch, capsys):
    monkeypatch.setattr(world, "LAUNCHER_PATIENCE", timedelta(seconds=1))
    torchrun = {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for name, value in torchrun.items():
        monkeypatch.setenv(name, value)
    assert main(["batch", "status", "nowhere"]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert f"does not answer at 127.0.0.1:{torchrun['MASTER_PORT']} any more: it has ended; start it again" in told
