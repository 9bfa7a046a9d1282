"""`doctor` on the command line: a page to read, or JSON; 0 where all is fine, 1 where there is a problem."""

import json

import pytest

from fastcache_xdit.cli import doctor
from fastcache_xdit.cli.main import main
from fastcache_xdit.doctor.finding import Finding, problem


def test_all_is_fine_here(capsys):
    assert main(["doctor"]) == 0
    told = capsys.readouterr().out
    assert told.rstrip().endswith("All fine.") and "shapes-pixart" in told and len(told.splitlines()) < 16


def test_memory_is_told_for_a_size(capsys):
    assert main(["doctor", "--json", "--height", "128", "--width", "128", "--cache_config", "third"]) == 0
    (memory,) = [each for each in json.loads(capsys.readouterr().out)["findings"] if each["topic"] == "memory"]
    assert "held for a request, granularity step" in memory["found"]


def test_json_holds_all_findings(capsys):
    assert main(["doctor", "--json", "--calibration", "none.safetensors"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert not told["fine"] and [each["topic"] for each in told["findings"] if each["problem"]] == ["calibration"]


@pytest.mark.parametrize("model", ["Qwen-Image", "Qwen/Qwen-Image"])
def test_a_model_that_is_not_here_is_told_by_its_name(capsys, monkeypatch, tmp_path, model):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert main(["doctor", "--model", model]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "Qwen/Qwen-Image" in told and "is not on this machine" in told and "hf download Qwen/Qwen-Image" in told


@pytest.fixture
def found(monkeypatch):
    def pretend(*findings):
        monkeypatch.setattr(doctor, "_findings", lambda *_: list(findings))

    return pretend


def test_problems_and_hints_are_counted(capsys, found):
    found(
        Finding("a", "fine"), Finding("b", "[red]slow[/]", "do c"), problem("d", "bad", "do e"), problem("f", "g", "h")
    )
    assert main(["doctor"]) == 1
    told = capsys.readouterr().out
    assert "2 problems and 1 hint." in told and "do c" in told and "[red]slow[/]" in told


def test_hints_do_not_fail(found):
    found(Finding("b", "slow", "do c"))
    assert main(["doctor"]) == 0


def test_only_the_first_rank_speaks(capsys, found, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    found(problem("d", "bad", "do e"))
    assert main(["doctor"]) == 0 and not capsys.readouterr().out


def test_mistakes_are_told(capsys):
    for words in (["--model", "none"], ["--colour"]):
        assert main(["doctor", *words]) == 2 and capsys.readouterr().err.startswith("fastcache_xdit: error: ")
