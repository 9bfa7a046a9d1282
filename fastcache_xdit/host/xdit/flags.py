"""The flags of xDiT's own parsers: their names without importing xDiT, which takes seconds, and the parsers."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

METHOD = "fastcache"  # of `--cache`
DTYPE_NAMES = ("bfloat16", "float16", "float32")
ENGINE, RUNNER = "add_cli_args", "add_runner_args"  # functions of xFuserArgs that add the flags of either kind
ADDED = {ENGINE: ("--cache",), RUNNER: ("--cache", "--warmup_steps", "--num_pipeline_patch")}  # by `register`
SOURCE = Path("config", "args.py")


def names(kind: str) -> set[str]:
    """Read the names of xDiT's flags in its source, those that `register` adds included.

    Returns:
        none where xDiT is not installed, or keeps its flags somewhere else.
    """
    found = {name for call in _added(kind) for name in _names_in(call)}
    return found | {*ADDED[kind]} if found else set()


def choices(kind: str) -> dict[str, tuple[str, ...]]:
    """Read which words xDiT's flags take, where its source lists them; the cache's own is one of its methods."""
    found: dict[str, tuple[str, ...]] = {}
    for call in _added(kind):
        for words in (keyword.value for keyword in call.keywords if keyword.arg == "choices"):
            if isinstance(words, ast.List) and all(isinstance(word, ast.Constant) for word in words.elts):
                found |= dict.fromkeys(_names_in(call), tuple(str(word.value) for word in words.elts))  # type: ignore[attr-defined]
    if methods := found.get("--cache_method"):
        found |= dict.fromkeys(("--cache_method", "--cache"), (*methods, METHOD))
    return found


def parser(kind: str) -> Any:
    """Make xDiT's own parser of these flags."""
    from xfuser import xFuserArgs
    from xfuser.config import FlexibleArgumentParser

    made = FlexibleArgumentParser()
    getattr(xFuserArgs, kind)(made)
    return made


def _added(kind: str) -> Iterator[ast.Call]:
    """Give the calls in xDiT's source that add a flag."""
    spec = importlib.util.find_spec("xfuser")
    for folder in spec.submodule_search_locations or () if spec else ():
        file = Path(folder) / SOURCE
        tree = ast.parse(file.read_text()) if file.is_file() else ast.Module([], [])
        functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        for call in _calls(functions, kind):
            if isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument":
                yield call


def _names_in(call: ast.Call) -> Iterator[str]:
    flags = [str(word.value) for word in call.args if isinstance(word, ast.Constant)]
    yield from flags
    if any("BooleanOptionalAction" in ast.unparse(keyword) for keyword in call.keywords):
        yield from (f"--no-{flag.removeprefix('--')}" for flag in flags)


def _calls(functions: Mapping[str, ast.FunctionDef], name: str) -> Iterator[ast.Call]:
    """Give every call in a function, and in those of the module that it calls."""
    for call in (node for node in ast.walk(functions[name]) if isinstance(node, ast.Call)) if name in functions else ():
        yield call
        if isinstance(call.func, ast.Name):
            yield from _calls(functions, call.func.id)
