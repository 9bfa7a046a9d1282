"""`calibrations`: what is kept, in tables that line up; names that may be short but never mistaken."""

from __future__ import annotations

import json

import pytest

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.cli.main import main
from fastcache_xdit.home import Home
from fastcache_xdit.shipped import calibration_path
from tests.learnt import learnt

FACTS = {"requests": 4, "when": "2026-11-27T14:03:22", "steps": 5, "promises": {"0.5": 41.2, "0.33": 35.0}}


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTCACHE_HOME", str(tmp_path / "home"))
    return Home()


@pytest.fixture
def kept(home):
    """A calibration that was learnt, one that `calibrate` made, one that says nothing of itself."""
    shipped = Calibration.load(calibration_path("shapes-pixart"))
    return [home.keep(each).stem for each in (learnt(adapters=["ink"], **FACTS), shipped, learnt(20.0))]


@pytest.fixture
def told(capsys):
    def run(*words, code=0):
        assert main(["calibrations", *words]) == code
        printed = capsys.readouterr()
        return printed.err if code else printed.out

    return run


def test_an_empty_folder_says_where_it_looked_and_what_fills_it(told, home):
    text = told("list")
    assert str(home.calibrations) in text and "--cache fastcache learns while serving" in text
    assert json.loads(told("list", "--json")) == {"folder": str(home.calibrations), "calibrations": []}
    assert str(home.calibrations) in told("remove", "--all")
    assert str(home.calibrations) in told("show", "x", code=2)


def test_the_table_lines_up(told, home, kept):
    heading, *rows, empty, summary = told("list").splitlines()
    assert len(rows) == 3 and not empty and summary.startswith("3 calibrations, ") and str(home.calibrations) in summary
    by_name = {row.split()[0]: row for row in rows}
    assert set(by_name) == set(kept)
    for name, steps, source in zip(kept, ("5", "30", "5"), ("4 requests", "48 prompts", "-"), strict=True):
        row, at = by_name[name], heading.index
        assert row[at("STEPS") : at("STEPS") + 5].strip() == steps
        assert row[at("LEARNT") : at("FROM")].strip().count("-") == 2
        assert row[at("FROM") : at("SIZE") - 3].strip().startswith(source)
        assert row[at("MODEL") - 2 : at("MODEL")] == "  " and len(row) == len(heading)
    assert "this model + ink" in by_name[kept[0]] and "2026-11-27" in by_name[kept[0]]


def test_json_holds_all(told, kept):
    by_name = {each["name"]: each for each in json.loads(told("list", "--json"))["calibrations"]}
    assert set(by_name) == set(kept)
    first = by_name[kept[0]]
    assert (first["facts"], first["when"], first["steps"]) == (FACTS, FACTS["when"], 5)
    assert first["identity"]["adapters"] == ["ink"] and first["size"] > 0 and first["path"].endswith(".safetensors")


def test_show_tells_all_that_is_readable(told, kept):
    lines = told("show", kept[0]).splitlines()
    assert lines[0] == kept[0]
    said = {line.split()[0]: line for line in lines[1:]}
    assert said["learnt"].endswith("2026-11-27 14:03:22 from 4 requests")
    assert said["promises"].endswith("budget 0.5   41.2 dB") and "  budget 0.33  35.0 dB" in said["budget"]
    assert "noise levels 0.900 to 0.100" in said["steps"] and said["adapters"].endswith("ink")
    assert "transformer_blocks.0  10" in said["weight"]
    made = told("show", "pixart")
    assert "from 48 prompts" in made and "num_inference_steps     30" in made and "granularity  step" in made
    assert "learnt" in told("show", kept[2]) and "promises" not in told("show", kept[2])


def test_names_that_are_wrong_list_what_there_is(told, kept):
    assert f"there are {', '.join(sorted(kept))}" in told("show", "none", code=2)
    assert "2 calibrations begin with 'this'" in told("show", "this", code=2)
    assert "takes either names or --all" in told("remove", code=2)
    assert "takes either names or --all" in told("remove", "pixart", "--all", code=2)
    assert "which action?" in told(code=2) and "unknown action 'rename'" in told("rename", code=2)


def test_remove(told, home, kept):
    told("remove", "pixart", "none", code=2)
    assert len(home.names()) == 3, "all or, where one name is wrong, none"
    assert told("remove", "pixart", "pix").count("removed") == 1
    assert sorted(home.names()) == sorted([kept[0], kept[2]])
    assert told("remove", "--all").count("removed") == 2 and home.names() == []


def test_a_broken_file_can_be_named_and_removed(told, home, kept, caplog):
    path = home.calibrations / "half.safetensors"
    path.write_bytes((home.calibrations / f"{kept[0]}.safetensors").read_bytes()[:-9])
    assert "3 calibrations" in told("list") and str(path) in caplog.text
    assert "truncated" in told("show", "half", code=2)
    assert "truncated" in told("export", "half", "--output", str(home.calibrations.parent / "x"), code=2)
    told("remove", "half")
    assert not path.exists()


def test_export(told, kept, tmp_path):
    file = tmp_path / "new" / "mine.safetensors"
    assert str(file) in told("export", "pixart", "--output", str(file))
    assert Calibration.load(file).facts["prompts"] == 48
    assert "it is a folder" in told("export", "pixart", "--output", str(tmp_path), code=2)


def test_help(told):
    assert all(action in told("--help") for action in ("list", "show", "remove", "export"))
