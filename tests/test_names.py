"""One class name means one thing in the whole package, and docstrings say what their function does."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "fastcache_xdit"
PATHS = sorted(ROOT.rglob("*.py"))
DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
STILTED = ("See ", "What takes the place")


def definitions(path: Path) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every class and function of a file, nested ones included."""
    return (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, DEFINITIONS))


def test_no_class_name_is_used_twice():
    names = Counter(node.name for path in PATHS for node in definitions(path) if isinstance(node, ast.ClassDef))
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_say_what_their_function_does(path):
    docstrings = {node.name: ast.get_docstring(node) or "" for node in definitions(path)}
    assert [name for name, text in docstrings.items() if text.startswith(STILTED)] == []
