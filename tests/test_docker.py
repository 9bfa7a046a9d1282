"""The images: linted, pinned, not run as root; the CPU image's install steps run in a clean virtual environment."""

import json
import os
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from importlib.metadata import files, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from fastcache_xdit.doctor.machine import GPU_EXTRA, requirements
from tests.launchers import OWN_TOOLS, ROOT
from tests.metadata import PROJECT

IMAGES = sorted(ROOT.glob("docker/Dockerfile.*"))
PINS = dict(line.split("==") for line in (ROOT / "docker/constraints.txt").read_text().splitlines() if "==" in line)
TORCH = "2.13.0"


def instructions(path):
    """(keyword, value) of every instruction of a Dockerfile, continued lines joined and comments left out."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def values(path, keyword):
    return [value for name, value in instructions(path) if name == keyword]


def pip_steps(path):
    """Words after `pip install` of every such step."""
    commands = [command.strip() for run in values(path, "RUN") for command in run.split("&&")]
    return [command.split("pip install", 1)[1].split() for command in commands if "pip install" in command]


def images(test):
    return pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.suffix[1:])(test)


@images
def test_hadolint_passes(path):
    done = subprocess.run(["hadolint", "--no-color", str(path)], capture_output=True, text=True, env=OWN_TOOLS)
    assert done.returncode == 0, done.stdout


@images
def test_bases_and_packages_are_pinned(path):
    assert all(re.search(r":\d+\.\d+\.\d+", base) for base in values(path, "FROM"))
    for step in pip_steps(path):
        packages = [word for word in step if re.match(r"[a-z]", word) and "/" not in word]
        assert all("==" in word or word in PINS for word in packages), step


@images
def test_they_run_as_somebody_and_say_how_they_are(path):
    assert values(path, "USER")[-1].isdigit() and values(path, "USER")[-1] != "0"
    assert values(path, "HEALTHCHECK")[0].endswith('CMD ["fastcache-xdit", "doctor"]')
    start = json.loads(values(path, "ENTRYPOINT")[0]) + ["--dry-run"] + json.loads(values(path, "CMD")[0])
    subprocess.run(start, cwd=ROOT, check=True, capture_output=True)


def test_torch_is_the_same_everywhere():
    files = [*IMAGES, ROOT / "scripts" / "setup.sh"]
    assert {re.search(r"torch==([\d.]+)", path.read_text())[1] for path in files} == {TORCH}


def test_constraints_pin_what_the_package_asks_for():
    for asked in map(Requirement, PROJECT["dependencies"]):
        if asked.name not in ("torch", "triton"):
            assert asked.specifier.contains(PINS[asked.name]), f"{asked} in docker/constraints.txt"


def test_the_cuda_image_has_flash_attn():
    (flash,) = [word for step in pip_steps(ROOT / "docker/Dockerfile.cuda") for word in step if "flash-attn==" in word]
    (asked,) = requirements(GPU_EXTRA)
    assert asked.specifier.contains(flash.split("==")[1])


def test_compose_starts_two_ranks_that_meet():
    compose = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())
    first, second = compose["services"].values()
    assert first["command"] == second["command"]
    words = ["bash", "scripts/torchrun.sh", "--dry-run", *first["command"]]
    line = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert "--nnodes 2" in line and "--rdzv_endpoint rank0:29500" in line and "rank0" in compose["services"]
    assert (ROOT / "docker" / first["build"]["context"] / first["build"]["dockerfile"]).is_file()


def _left_out(folder, names):
    """What .dockerignore leaves out: `**/` anywhere, the others at the top."""
    patterns = (ROOT / ".dockerignore").read_text().split()
    here = [each.removeprefix("**/") for each in patterns if Path(folder) == ROOT or each.startswith("**/")]
    return [name for name in names if any(fnmatch(name, pattern) for pattern in here)]


@pytest.fixture
def source(tmp_path):
    """What `COPY . .` copies."""
    return shutil.copytree(ROOT, tmp_path / "source", ignore=_left_out)


@pytest.fixture
def clean(tmp_path):
    """A new virtual environment that holds links to the two packages of a GB, as wheels just unpacked."""
    if version("torch").split("+")[0] != TORCH:
        pytest.skip(f"torch {TORCH} would be downloaded")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "clean")], check=True)
    (packages,) = (tmp_path / "clean").glob("lib/python3*/site-packages")
    for name in ("torch", "triton"):
        for file in files(name) or ():
            if ".." not in file.parts and file.suffix != ".pyc":
                (packages / file).parent.mkdir(parents=True, exist_ok=True)
                (packages / file).symlink_to(file.locate())
    return tmp_path / "clean" / "bin"


def test_the_cpu_image_installs_in_a_clean_environment(source, clean):
    """Its pip steps as they are, but for where torch comes from and for pip's cache, which spares downloads."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    for step in pip_steps(ROOT / "docker/Dockerfile.cpu"):
        words = " ".join(step).replace("--no-cache-dir ", "").split(" --index-url ")[0].split()
        command = [str(clean / "pip"), "install", "--quiet", "--no-compile", *words]
        subprocess.run(command, check=True, cwd=source, env=environment)
    command = [str(clean / "fastcache-xdit"), "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", env=environment)
    found = {each["topic"]: each["state"] for each in json.loads(done.stdout)["findings"]}
    assert done.returncode == 0 and set(found.values()) == {"fine"}, done.stdout
