"""Prompt files: what lines become, and what a bad one says."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as some
from pyarrow import parquet

from fastcache_xdit.jobs.prompts import read_prompts
from fastcache_xdit.jobs.recipe import LONGEST_PROMPT, REASON_LENGTH, BadLine, PromptLine, checked

LINES = [
    {"prompt": "a red circle", "seed": 3, "width": 64, "height": 128, "steps": 8, "guidance": 1.5},
    {"prompt": "zwei blaue Dreiecke, größer", "negative_prompt": "grün"},
]


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_txt_is_one_prompt_a_line(tmp_path):
    path = write(tmp_path, "p.txt", "\ufeffa red circle\r\n\n# a comment\n  a blue\u2028square \n")
    assert [line.prompt for line in read_prompts(path)] == ["a red circle", "a blue\u2028square"]


def test_every_kind_of_file_gives_the_same_lines(tmp_path):
    columns = list(PromptLine.model_fields)
    rows = [",".join(f'"{line.get(name, "")}"' for name in columns) for line in LINES]
    parquet.write_table(
        pyarrow.Table.from_pylist([dict.fromkeys(columns) | line for line in LINES]), tmp_path / "p.parquet"
    )
    write(tmp_path, "p.jsonl", "\n".join(json.dumps(line) for line in LINES))
    write(tmp_path, "p.csv", "\n".join([",".join(columns), *rows]))
    for name in ("p.jsonl", "p.csv", "p.parquet"):
        assert read_prompts(tmp_path / name) == [PromptLine(**line) for line in LINES]


@pytest.mark.parametrize(
    "line, words",
    [
        (b'{"prompt": "caf\xe9"}', ["not UTF-8"]),
        (rb'{"prompt": "\ud800"}', ["not UTF-8"]),
        (b'{"prompt": "x"', ["not JSON"]),
        (b'["x"]', ["an object", "not list"]),
        (b"{}", ["'prompt'", "required"]),
        (b'{"prompt": ""}', ["'prompt'", "required"]),
        (b'{"prompt": 5}', ["'prompt'", "string"]),
        (b'{"prompt": "x", "stpes": 5}', ["unknown option 'stpes'; did you mean 'steps'?"]),
        (b'{"prompt": "x", "steps": 0}', ["'steps'", "greater than or equal to 1"]),
        (b'{"prompt": "x", "steps": "many"}', ["'steps'", "integer"]),
        (b'{"prompt": "x", "width": 100}', ["'width'", "multiple of 8", "100"]),
        (b'{"prompt": "x", "height": 100000}', ["'height'", "16384"]),
        (b'{"prompt": "x", "seed": -1}', ["'seed'"]),
        (b'{"prompt": "x", "guidance": NaN}', ["'guidance'", "finite"]),
        (b'{"prompt": "%s"}' % (b"x" * (LONGEST_PROMPT + 1)), ["'prompt'", f"at most {LONGEST_PROMPT}"]),
    ],
)
def test_a_bad_line_says_why_and_spoils_no_other(tmp_path, line, words):
    before, bad, after = read_prompts(write(tmp_path, "p.jsonl", b'{"prompt": "a"}\n' + line + b'\n{"prompt": "b"}\n'))
    assert (before, after) == (PromptLine(prompt="a"), PromptLine(prompt="b"))
    assert isinstance(bad, BadLine) and all(word in bad.reason for word in words), bad
    assert len(bad.reason) <= REASON_LENGTH


def test_bad_bytes_and_cells_of_tables(tmp_path):
    path = write(tmp_path, "p.csv", b'prompt,steps\na,5\n\xff,5\nb,c,d\n"e, f",\n\n' + b"x" * 200_000 + b",1\ng,2\n")
    first, latin, cells, quoted, long, last = read_prompts(path)
    assert (first, quoted, last) == (
        PromptLine(prompt="a", steps=5),
        PromptLine(prompt="e, f"),
        PromptLine(prompt="g", steps=2),
    )
    assert "not UTF-8" in latin.reason and "3 cells in 2 columns" in cells.reason and "not CSV" in long.reason
    texts = pyarrow.StringArray.from_buffers(2, *pyarrow.array([b"ok", b"\xff"]).buffers()[1:])
    parquet.write_table(pyarrow.table({"prompt": texts}), tmp_path / "p.parquet")
    good, bad = read_prompts(tmp_path / "p.parquet")
    assert good == PromptLine(prompt="ok") and "not UTF-8" in bad.reason


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("none.txt", None, ["no such prompts file"]),
        ("p.docx", "x", [".txt, .jsonl, .csv, .parquet", "not in .docx"]),
        ("p.txt", "# only a comment\n", ["holds no prompt"]),
        ("p.csv", "prompt,sede\nx,1\n", ["unknown option 'sede'; did you mean 'seed'?"]),
        ("p.csv", "seed\n1\n", ["no column 'prompt'"]),
        ("p.parquet", "not parquet", ["is not a parquet file"]),
    ],
)
def test_a_bad_file_is_refused(tmp_path, name, content, words):
    path = write(tmp_path, name, content) if content is not None else tmp_path / name
    with pytest.raises(ValueError) as told:
        read_prompts(path)
    assert all(word in str(told.value) for word in words), told.value


cells = some.none() | some.booleans() | some.integers() | some.floats() | some.text() | some.lists(some.integers())


@given(some.dictionaries(some.sampled_from([*PromptLine.model_fields, "other"]), cells))
def test_no_line_raises(values):
    line = checked(values)
    assert isinstance(line, PromptLine) or (0 < len(line.reason) <= REASON_LENGTH and line.reason.isprintable())


@given(some.binary())
def test_no_file_raises_anything_but_a_users_error(content):
    with tempfile.TemporaryDirectory() as folder:
        for name in ("p.txt", "p.jsonl", "p.csv"):
            try:
                lines = read_prompts(write(Path(folder), name, content))
            except ValueError as error:
                assert folder in str(error)
            else:
                "".join(
                    line.prompt if isinstance(line, PromptLine) else line.text + line.reason for line in lines
                ).encode()
