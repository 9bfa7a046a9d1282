"""The launchers: valid shell; what --dry-run prints is what they send, word for word; mistakes are told."""

import os
import shutil
import subprocess

import pytest

from fastcache_xdit.cli.catalogue import COMMANDS
from tests.launchers import JOBS, OPTIONS, OWN_TOOLS, ROOT, TOOLS, launch, printed, stand_ins, write_tool

SCRIPTS = [*sorted(ROOT.glob("scripts/*.sh")), ROOT / ".ci" / "run"]


@pytest.fixture
def tools(tmp_path):
    return stand_ins(tmp_path)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_pass_shellcheck(path):
    command = ["shellcheck", "--external-sources", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=OWN_TOOLS)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("name", TOOLS)
def test_a_dry_run_prints_what_would_be_sent(name, job, tools):
    words = [*OPTIONS[name], *JOBS[job]]
    text, record = printed(name, *words), tools / "record"
    assert not record.exists(), "a dry run called its tool"
    assert launch(name, *words, path=tools, record=record).returncode == 0
    sent = record.read_bytes()
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "RECORD": str(record)}
    subprocess.run(["bash", "-c", text], check=True, env=environment, stdin=subprocess.DEVNULL)
    assert record.read_bytes() == sent
    assert sent.startswith(TOOLS[name].encode())


@pytest.mark.parametrize(
    "name, words, told",
    [
        ("torchrun", [], "no COMMAND; give one of: run generate batch"),
        ("torchrun", ["paint"], "unknown command 'paint'; commands: run generate"),
        ("torchrun", ["batch", "submit"], "only 'batch run' needs a launcher"),
        ("torchrun", ["--rank", "2", "run"], "unknown option --rank; options: "),
        ("torchrun", ["--ranks"], "--ranks needs a value"),
        ("torchrun", ["--ranks", "two", "run"], "--ranks two is not possible; give 1 or more"),
        ("torchrun", ["--nodes", "2", "run"], "--nodes 2 needs --rendezvous HOST:PORT"),
        ("slurm", ["--gpus", "all", "run"], "--gpus all is not possible; give 0 or more"),
        ("slurm", ["--cores", "0", "run"], "--cores 0 is not possible"),
        ("kubernetes", ["run"], "no image; give --image IMAGE"),
        ("kubernetes", ["--image", "x", "--job", "My Job", "run"], "--job My Job is no Kubernetes name"),
        ("ray", ["--ranks", "2", "batch", "run"], "give --replicas and degrees behind it"),
        ("ray", ["--address", "head:8265", "run"], "give http://HOST:8265"),
    ],
)
def test_mistakes_are_told(name, words, told):
    done = launch(name, "--dry-run", *words)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith(f"{name}.sh: error: ") and told in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", [name for name, tool in TOOLS.items() if not shutil.which(tool)])
def test_a_missing_tool_is_told(name):
    done = launch(name, *OPTIONS[name], *JOBS["run"])
    assert done.returncode == 2 and f"{TOOLS[name]} is not on this machine" in done.stderr


@pytest.mark.parametrize("name", TOOLS)
def test_their_help_names_every_option(name):
    done = launch(name, "--help")
    declared = launch(name, "--unknown").stderr.split("options: ")[1].split(", then")[0].split()
    assert done.returncode == 0 and all(flag in done.stdout for flag in declared if flag != "--help")


def test_a_dry_run_asked_for_late_sends_nothing(tools):
    done = launch("slurm", *JOBS["run"], "--dry-run", path=tools, record=tools / "record")
    assert done.returncode == 0 and "--dry-run" not in done.stdout and not (tools / "record").exists()


def test_they_know_the_commands():
    listed = launch("torchrun").stderr.split("give one of: ")[1].split(" (")[0].split()
    assert set(listed) - set(COMMANDS) <= {"batch"}


# Instead of an interpreter: "makes" an environment whose python writes down what it is asked to install.
INTERPRETER = """#!/usr/bin/env bash
mkdir -p .venv/bin && touch .venv/bin/activate
printf '#!/usr/bin/env bash\\necho "${!#}" >> installed\\n' > .venv/bin/python && chmod +x .venv/bin/python
"""


def set_up(folder, extras):
    """What scripts/setup.sh installs, torch aside."""
    write_tool(folder / "interpreter", INTERPRETER)
    (folder / "installed").write_text("")
    command = ["bash", "-c", f'set -euo pipefail; . {ROOT}/scripts/setup.sh "{extras}"']
    environment = {**os.environ, "FASTCACHE_PYTHON": "./interpreter"}
    subprocess.run(command, check=True, cwd=folder, env=environment, capture_output=True)
    return (folder / "installed").read_text().split()[1:]


def test_each_set_of_packages_is_installed_once(tmp_path):
    for name in ("setup.py", "pyproject.toml"):
        (tmp_path / name).write_text("")
    assert set_up(tmp_path, "") == ["."]
    assert set_up(tmp_path, "dev") == [".[dev]"]
    assert set_up(tmp_path, "") == set_up(tmp_path, "dev") == []
    (tmp_path / "pyproject.toml").write_text("changed")
    assert set_up(tmp_path, "dev") == [".[dev]"]
    assert set_up(tmp_path, "") == []


def test_the_quickstart_installs_no_tools_for_development():
    assert '. scripts/setup.sh ""' in (ROOT / "scripts" / "quickstart.sh").read_text()
    assert ". scripts/setup.sh dev" in (ROOT / "scripts" / "test.sh").read_text()


def test_what_a_gpu_is_tried_with_runs_on_a_cpu_and_goes_on_where_it_was(tmp_path):
    command = ["bash", "scripts/gpu.sh", "--device", "cpu", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:]
    parts = {"environment", "tests", "speed-flux.1-dev", "speed-wan2.1-1.3b", "speed-hunyuanvideo", "peers"}
    assert {path.stem for path in tmp_path.glob("*.done")} == parts
    assert all((tmp_path / f"{part}.log").read_text().strip() for part in parts)
    again = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert again.returncode == 0 and again.stdout.count("done before") == len(parts)


@pytest.mark.parametrize("words", [["--device", "tpu"], ["--ranks", "0"], ["--colour", "red"], ["--output"]])
def test_mistakes_with_a_gpu_are_told(words):
    done = subprocess.run(["bash", "scripts/gpu.sh", *words], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and done.stderr.startswith("gpu.sh: ")
