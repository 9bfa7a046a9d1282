"""Help, versions and misspelt options are answered without importing torch or xDiT, which takes seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from fastcache_xdit.cli.catalogue import COMMANDS
from fastcache_xdit.cli.commands import Command, Group
from fastcache_xdit.cli.main import main
from fastcache_xdit.host.xdit import flags

SLOW = ("torch", "xfuser", "diffusers", "transformers", "scipy")
# Answers many command lines in one process, and tells which slow modules each of them has imported.
ANSWER = """
import contextlib, io, json, sys
from fastcache_xdit.cli.main import main
told = []
for argv in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(argv)
    slow = [name for name in json.loads(sys.argv[2]) if name in sys.modules]
    told.append([code, out.getvalue(), err.getvalue(), slow])
print(json.dumps(told))
"""


def every_command(commands=COMMANDS, *words: str) -> Iterator[tuple[tuple[str, ...], Command | Group]]:
    for name, command in commands.items():
        yield (*words, name), command
        if isinstance(command, Group):
            yield from every_command(command.commands, *words, name)


EVERY = dict(every_command())
HELPS = [[*words, "--help"] for words in EVERY]
TYPOS = {
    ("generate", "--promts", "x"): "unknown option '--promts'; did you mean '--prompts'?",
    ("generate", "--cache_confg", "third"): "unknown option '--cache_confg'; did you mean '--cache_config'?",
    ("run", "--chache=fastcache"): "unknown option '--chache'; did you mean '--cache'?",
    ("bench", "peers", "--quik"): "unknown option '--quik'; did you mean '--quick'?",
    ("bench", "speed", "--repetition-s", "2"): "unknown option '--repetition-s'; did you mean '--repetitions'?",
    ("batch", "run", "job", "--ulises-degree", "2"): "did you mean '--ulysses_degree'?",
    ("batch", "status", "job", "--jsn"): "did you mean '--json'?",
    ("run", "--cache", "fastcahe"): "--cache takes no 'fastcahe'; did you mean 'fastcache'?",
    ("generate", "--cache-method=x"): "--cache_method takes no 'x'; it takes teacache, fbcache, dbcache, fastcache",
    ("bench", "speed", "--dtype", "bfloat"): "--dtype takes no 'bfloat'; did you mean 'bfloat16'?",
    (
        "generate",
        "--model",
        "Qwen-Image",
    ): "no such model: Qwen-Image; give a folder, a hub id like ORG/NAME",
    ("generate", "--model", "shapes-flx"): "no such model: shapes-flx; did you mean 'shapes-flux'?",
    ("generate", "--model", "shapes-flux", "--cache_config", "thrid"): "no preset 'thrid'; did you mean 'third'?",
    ("run", "--cache_config", '{"budgt": 0.3}'): "unknown option 'budgt'; did you mean 'budget'?",
    ("generate", "--zzz"): "unknown option '--zzz'; --help lists the options",
    ("generat",): "unknown command 'generat'; did you mean 'generate'?",
    ("bench", "peer"): "unknown benchmark 'peer'; did you mean 'peers'?",
    ("batch", "sumbit"): "unknown action 'sumbit'; did you mean 'submit'?",
}


@pytest.fixture(scope="module")
def answered() -> dict[tuple[str, ...], tuple[int, str, str]]:
    """What each command line was answered; none of them may import anything slow."""
    lines = [["--help"], ["--version"], ["presets"], *HELPS, *map(list, TYPOS)]
    command = [sys.executable, "-c", ANSWER, json.dumps(lines), json.dumps(SLOW)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    assert [(line, slow) for line, (*_, slow) in zip(lines, told, strict=True) if slow] == []
    return {tuple(line): (code, out, err) for line, (code, out, err, _) in zip(lines, told, strict=True)}


def test_help_begins_with_what_one_types(answered):
    for words in [(), *EVERY]:
        code, out, _ = answered[(*words, "--help")]
        assert code == 0 and out.startswith(" ".join(("usage: python -m fastcache_xdit", *words)))


def test_help_is_a_page(answered):
    for words, command in EVERY.items():
        told = answered[(*words, "--help")][1]
        assert len(told.splitlines()) < 95, words
        if isinstance(command, Command) and command.xdit:
            assert told.splitlines()[-1].startswith("--help-xdit lists all options of xDiT's")


def test_groups_list_their_commands(answered):
    assert "  speed " in answered[("bench", "--help")][1] and "  submit " in answered[("batch", "--help")][1]
    for name in COMMANDS:
        assert f"  {name} " in answered[("--help",)][1]


def test_the_version_is_told(answered):
    assert answered[("--version",)][1].startswith("fastcache_xdit 0.")
    assert "--version" in answered[("--help",)][1]


@pytest.mark.parametrize("words", TYPOS)
def test_what_is_misspelt_is_told(answered, words):
    code, _, err = answered[words]
    assert code == 2 and TYPOS[words] in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("kind", [flags.ENGINE, flags.RUNNER])
def test_names_are_those_of_the_parser(kind, capsys):
    assert main(["run" if kind == flags.RUNNER else "generate", "--help-xdit"]) == 0  # registers fastcache as well
    told = capsys.readouterr().out
    assert "--attention_backend" in told and len(told.splitlines()) > 100
    assert set(flags.parser(kind)._option_string_actions) - {"-h", "--help"} == flags.names(kind)


def test_one_rank_alone_speaks(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert main(["generate", "--help"]) == main(["--help"]) == main(["--version"]) == 0
    assert not capsys.readouterr().out


def test_the_installed_script_is_named_by_its_own_name(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/fastcache-xdit"])
    assert main(["bench", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: fastcache-xdit bench BENCHMARK [options]")
