"""Imports run one way: a room may import rooms with a smaller number, never the same or a larger one."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "fastcache_xdit"
LAYER = {
    "errors": 0,
    "files": 1,
    "clips": 1,
    "wrapping": 1,
    "undo": 2,
    "shipped": 1,
    "options": 1,
    "goal": 1,
    "reading": 1,
    "config": 2,
    "clock": 2,
    "counters": 2,
    "telling": 3,
    "decision": 3,
    "approx": 3,
    "tokens": 3,
    "home": 4,
    "models": 4,
    "parallel": 4,
    "segments": 5,
    "partial": 6,
    "runtime": 7,
    "host": 8,
    "assembly": 9,
    "learning": 9,
    "handle": 10,
    "output_assembly": 10,
    "derived_assembly": 11,
    "plugin": 12,
    "evaluate": 13,
    "doctor": 13,
    "tuning": 14,
    "jobs": 14,
    "bench": 15,
    "cli": 16,
    "__init__": 17,
    "__main__": 17,
}


def room(module: str) -> str:
    """The room of a dotted module name inside the package."""
    return module.split(".")[1] if "." in module else "__init__"


def own_imports() -> Iterator[tuple[str, str, bool]]:
    """(source, target, at the top of the module or for type checkers alone) of every import of our own package."""
    for path in sorted(ROOT.rglob("*.py")):
        source = "fastcache_xdit." + ".".join(path.relative_to(ROOT).with_suffix("").parts)
        tree = ast.parse(path.read_text())
        top = [*tree.body, *(node for branch in tree.body if _is_for_type_checkers(branch) for node in branch.body)]
        for node in ast.walk(tree):
            for target in _targets(node, source):
                yield source, target, node in top


def _is_for_type_checkers(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _targets(node: ast.AST, source: str) -> list[str]:
    if isinstance(node, ast.Import):
        return [name.name for name in node.names if name.name.startswith("fastcache_xdit")]
    if not isinstance(node, ast.ImportFrom):
        return []
    if node.level:
        return [".".join([*source.split(".")[: -node.level], node.module or ""])]
    if not (node.module or "").startswith("fastcache_xdit"):
        return []
    return [f"{node.module}.{name.name}" if node.module == "fastcache_xdit" else node.module for name in node.names]


IMPORTS = sorted(set(own_imports()))


def test_every_room_has_a_layer():
    rooms = {path.stem if path.is_file() else path.name for path in ROOT.iterdir() if _is_code(path)}
    assert rooms == set(LAYER)


def _is_code(path: Path) -> bool:
    return path.suffix == ".py" or (path.is_dir() and (path / "__init__.py").exists())


@pytest.mark.parametrize("source, target, at_top", IMPORTS)
def test_imports_run_downhill(source, target, at_top):
    assert room(source) == room(target) or LAYER[room(target)] < LAYER[room(source)], f"{source} imports {target}"
    assert at_top, f"{source} imports {target} inside a function"


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_host_room_names_a_host(path):
    names = {name.split(".")[0] for name in _imported(path)}
    inside = path.relative_to(ROOT).parts[0]
    if inside != "host":
        assert not names & {"xfuser", "yunchang"} or inside == "cli", f"{path} imports xDiT"
    assert "shapes" not in names, f"{path} imports the small models; take them from shipped.py"
    if inside == "decision":
        assert "torch" not in names, f"{path} imports torch"


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        if isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or ""
