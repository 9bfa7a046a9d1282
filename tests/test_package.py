"""The package that people install: light to import, small, and clear about what is in the repository alone."""

import ast
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

import fastcache_xdit
import shapes.shapes
from fastcache_xdit import shipped
from fastcache_xdit.errors import UsageError
from tests.launchers import ROOT
from tests.metadata import PROJECT

MB = 1_000_000
HEAVY = {
    *("diffusers", "transformers", "xfuser", "triton", "accelerate", "huggingface_hub", "ray"),
    *("matplotlib", "pandas", "PIL", "scipy", "torchmetrics", "rich", "jinja2", "cache_dit", "shapes"),
}


def run(words, folder, path):
    """Run Python in a folder, with `path` as the only addition to its modules."""
    environment = {**os.environ, "PYTHONPATH": str(path)}
    return subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built beside links to all that it could take in."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("fastcache_xdit", "shapes", "tests", "README.md", "LICENSE", "pyproject.toml", "setup.py"):
        (folder / name).symlink_to(ROOT / name)
    words = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", "built", "."]
    done = run(words, folder, "")
    assert done.returncode == 0, done.stderr
    (path,) = (folder / "built").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder)
    return folder


def test_importing_it_imports_nothing_heavy(tmp_path):
    done = run(["-c", "import sys, fastcache_xdit; print(*sys.modules)"], tmp_path, ROOT)
    assert done.returncode == 0, done.stderr
    assert not HEAVY & {name.split(".")[0] for name in done.stdout.split()}


def test_the_wheel_is_the_plugin_alone(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        "fastcache_xdit",
        f"fastcache_xdit-{fastcache_xdit.__version__}.dist-info",
    }
    assert {Path(name).suffix for name in names if name.startswith("fastcache_xdit/")} <= {
        ".py",
        ".typed",
        ".html",
        ".safetensors",
        ".md",
        ".json",
    }
    assert wheel.stat().st_size < 2 * MB


def test_the_wheel_has_every_module_and_template(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("fastcache_xdit/")}
    files = [path for path in (ROOT / "fastcache_xdit").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert names == {str(path.relative_to(ROOT)) for path in files}


@pytest.mark.parametrize("command", ["generate", "batch submit"])
def test_without_the_repository_a_small_model_is_refused_in_one_line(installed, tmp_path, command):
    done = run(
        ["-m", "fastcache_xdit", *command.split(), "--model", "shapes-pixart", "--prompt", "x"], tmp_path, installed
    )
    told = [line for line in done.stderr.splitlines() if line.startswith("fastcache_xdit: error: ")]
    assert done.returncode == 2 and len(told) == 1 and "Traceback" not in done.stderr
    assert "small models" in told[0] and f"git clone {shipped.REPOSITORY}" in told[0]


def test_without_the_repository_no_picture_is_judged(monkeypatch):
    monkeypatch.setattr(shipped, "in_clone", lambda: False)
    assert shipped.prompt_accuracy(None, "a red circle on a dark background") is None
    with pytest.raises(UsageError, match="git clone"):
        shipped.model_path("shapes-pixart")


def test_in_a_clone_the_small_models_are_found_from_any_folder(tmp_path):
    """As with an editable install, where the package alone can be imported."""
    (tmp_path / "fastcache_xdit").symlink_to(ROOT / "fastcache_xdit")
    script = """
from fastcache_xdit import shipped
print(shipped.model_path("shapes-flux"))
print(shipped.draw("a red circle on a dark background", 1, __import__("random").Random(0)).shape)
"""
    done = run(["-c", script], "/", tmp_path)
    assert done.stdout.splitlines() == [str(ROOT / "shapes/models/shapes-flux"), "torch.Size([1, 3, 128, 128])"]


def test_only_one_module_reaches_the_small_models():
    for path in (ROOT / "fastcache_xdit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "shapes" for name in names), f"{path} imports shapes"


def test_what_is_said_twice_is_the_same():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert PROJECT["urls"]["Repository"] == citation["repository-code"] == shipped.REPOSITORY
    assert citation["version"] == fastcache_xdit.__version__ and citation["license"] == PROJECT["license"]
    assert f"## [{fastcache_xdit.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    assert shipped.IMAGE_SIZE == shapes.shapes.IMAGE_SIZE


def test_dependencies_are_those_that_are_imported():
    """Every third-party module that the package imports at the top of a module is asked for by name."""
    asked = {re.match(r"[\w-]+", line)[0].lower() for line in PROJECT["dependencies"]}
    called = {"yaml": "pyyaml", "PIL": "pillow", "huggingface_hub": "huggingface-hub"}
    for path in (ROOT / "fastcache_xdit").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"fastcache_xdit"}:
                assert called.get(name, name) in asked, f"{path} imports {name}"
