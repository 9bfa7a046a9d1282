"""What is no mistake of the user's is a bug: its traceback is shown, with a request to report it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fastcache_xdit.cli import generate
from fastcache_xdit.cli.main import main

GENERATE = ["generate", "--model", "shapes-pixart", "--prompt", "a red circle on a dark background"]


@pytest.fixture
def mismatched(monkeypatch):
    """Have `generate` meet lists of different length where it makes batches."""

    def batches(prompts, size, seed):
        return list(zip(prompts, [], strict=True))

    monkeypatch.setattr(generate.engine, "batches", batches)


def test_a_bug_shows_its_traceback_and_asks_to_be_reported(capsys, mismatched, tmp_path):
    assert main([*GENERATE, "--output", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert "Traceback (most recent call last)" in told and "in batches" in told
    last, request = told.splitlines()[-2:]
    assert last == "ValueError: zip() argument 2 is shorter than argument 1"
    assert "please report it with the traceback above" in request
    assert all(name in request for name in ("fastcache_xdit", "torch", "xfuser", "Python 3"))


def test_a_mistake_is_told_in_one_line(capsys, mismatched):
    assert main([*GENERATE, "--batch_size", "0"]) == 2
    assert capsys.readouterr().err == "fastcache_xdit: error: batch_size=0 is not possible; set 1 or more\n"


def test_what_nobody_reads_on_ends_quietly():
    words = [sys.executable, "-m", "fastcache_xdit", "models", "FluxTransformer2DModel"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        running.stdout.close()
        assert (running.stderr.read(), running.wait()) == ("", 1)
