"""Prompt files that are damaged, or say two things at once: what is said, and that all commands read them alike."""

from __future__ import annotations

import pyarrow
import pytest
from pyarrow import parquet

from fastcache_xdit.cli.main import main
from fastcache_xdit.cli.prompts import prompts_in
from fastcache_xdit.errors import UsageError
from fastcache_xdit.jobs.prompts import numbered_prompts, read_prompts
from fastcache_xdit.jobs.recipe import BadLine, PromptLine
from tests.jobs.test_prompts import write


@pytest.mark.parametrize("bad", ['"never closed', '"closed" late,', 'a "b', '"'])
def test_a_wrong_quote_spoils_its_own_line_alone(tmp_path, bad):
    path = write(tmp_path, "p.csv", f'prompt,steps\na,5\n{bad}\nb,6\n"c\nd",7\ne,8\n')
    lines = dict(numbered_prompts(path))
    assert [lines[number] for number in (2, 4, 6, 7)] == [
        PromptLine(prompt=prompt, steps=steps) for prompt, steps in (("a", 5), ("b", 6), ("c\nd", 7), ("e", 8))
    ]
    assert bad == 'a "b' or ("not CSV" in lines[3].reason and "each quote closed" in lines[3].reason)


@pytest.mark.parametrize(
    "line, reason",
    [
        ('{"prompt": "a", "seed": ' + "1" * 5000 + "}", "not JSON"),
        ('{"prompt": "a", "seed": true}', "'seed'"),
        ('{"prompt": true}', "'prompt'"),
        ('{"prompt": "a", "seed": 1, "seed": 2}', "given twice"),
        ('{"prompt": "a\\u0000b"}', "NUL"),
        ('{"prompt": " \\t\\u2003"}', "blank"),
    ],
)
def test_a_bad_line_is_one_line(tmp_path, line, reason):
    path = write(tmp_path, "p.jsonl", f'{{"prompt": "a"}}\n{line}\n{{"prompt": "b"}}\n')
    _, bad, last = read_prompts(path)
    assert isinstance(bad, BadLine) and reason in bad.reason and last == PromptLine(prompt="b")
    with pytest.raises(UsageError, match=r"p.jsonl, line 2: ") as told:
        prompts_in(str(path))
    assert reason in str(told.value) and len(str(told.value)) < 500


def test_columns_that_are_there_twice_are_refused(tmp_path):
    with pytest.raises(UsageError, match="more than one column 'seed'"):
        read_prompts(write(tmp_path, "p.csv", "prompt,seed,seed\na,1,2\n"))


def test_a_damaged_page_of_parquet_is_told(tmp_path):
    path = tmp_path / "p.parquet"
    parquet.write_table(pyarrow.table({"prompt": [f"prompt {n}" for n in range(5000)]}), path, compression="zstd")
    content = bytearray(path.read_bytes())
    content[200:1200] = b"?" * 1000
    path.write_bytes(content)
    with pytest.raises(UsageError, match="is not a parquet file, or damaged"):
        read_prompts(path)


def test_generate_reads_as_batch_does(tmp_path):
    path = write(tmp_path, "p.txt", "\ufeffa red\x0ccircle\r\na blue\u2028square\n# no\n")
    assert (
        prompts_in(str(path))
        == [line.prompt for line in read_prompts(path)]
        == ["a red\x0ccircle", "a blue\u2028square"]
    )
    assert prompts_in(str(write(tmp_path, "p.csv", 'prompt\n"a, b"\n'))) == ["a, b"]
    with pytest.raises(UsageError, match="p.txt, line 2: the line is not UTF-8"):
        prompts_in(str(write(tmp_path, "p.txt", b"a\ncaf\xe9\n")))
    with pytest.raises(UsageError, match="line 2: the prompts of this command are texts alone, without seed"):
        prompts_in(str(write(tmp_path, "p.csv", "prompt,seed\na,1\n")))


@pytest.mark.parametrize(
    "words, told",
    [
        (["--guidance_scale", "-3"], "--guidance_scale: option 'guidance': input should be greater than or equal to 0"),
        (["--guidance_scale", "inf"], "finite number, not inf"),
        (["--guidance_scale", "nan"], "finite number, not nan"),
        (["--num_inference_steps", "2000"], "less than or equal to 1000, not 2000"),
        (["--height", "100000"], "less than or equal to 16384, not 100000"),
        (["--height", "70"], "multiple of 8, not 70"),
        (["--seed", "-5"], "seed=-5 is not possible"),
        (["--seed", str(2**63 - 1)], "is not possible for 2 prompts"),
        (["--lease", "0.1"], "lease=0.1 is not possible"),
    ],
)
@pytest.mark.parametrize("command", ["generate", "submit"])
def test_options_of_all_lines_have_the_limits_of_lines(tmp_path, capsys, command, words, told):
    given = ["--model", "shapes-pixart", "--prompts", str(write(tmp_path, "p.txt", "a\nb\n")), *words]
    if command == "generate" and "--lease" in words:
        return
    place = ["generate"] if command == "generate" else ["batch", "submit", str(tmp_path / "job")]
    assert main([*place, *given]) == 2
    said = capsys.readouterr().err
    assert told in said and len(said.splitlines()) == 1 and not (tmp_path / "job").exists()


def test_a_size_that_the_model_cannot_make_is_refused_by_generate_too(capsys):
    assert main(["generate", "--model", "shapes-pixart", "--prompt", "a", "--height", "72"]) == 2
    assert "128 x 72 pixels are not possible; this model takes multiples of 16" in capsys.readouterr().err
