"""Values that are told to be wrong before anything slow is imported: words of a list, models, the cache's config."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.errors import UsageError
from fastcache_xdit.host.xdit import flags
from fastcache_xdit.options import unknown_option
from fastcache_xdit.shipped import SHIPPED, model_path

_NAME = re.compile(r"[A-Za-z][\w-]*")


def check_values(own: argparse.ArgumentParser, kind: str, argv: Sequence[str]) -> None:
    """Raise UsageError for a value that nothing else on the command line can make right.

    Args:
        own: knows the command's own options.
        kind: whose flags the command takes beside them, a kind of `flags`; empty for none.
        argv: the command line.
    """
    given = dict(_given(argv, bool(kind)))
    for name, words in {**_choices(own), **(flags.choices(kind) if kind else {})}.items():
        if (value := given.get(name, words[0])) not in words:
            near = unknown_option(value, words, f"it takes {', '.join(words)}")
            raise UsageError(f"{name} takes no {value!r}", near.advice)
    model, text = given.get("--model"), given.get("--cache_config")
    if model and kind == flags.ENGINE:
        model_folder(model)
    if text and (model or not is_preset(text)):
        named_config(text, model)


def _given(argv: Sequence[str], is_spelt_freely: bool) -> Iterator[tuple[str, str]]:
    """Give the options of a command line with the word behind each; xDiT's may be spelt with dashes."""
    for word, following in pairwise([*argv, "--"]):
        name, is_joined, value = word.partition("=")
        if name.startswith("--") and (is_joined or not following.startswith("--")):
            yield f"--{name[2:].replace('-', '_')}" if is_spelt_freely else name, value if is_joined else following


def _choices(own: argparse.ArgumentParser) -> dict[str, tuple[str, ...]]:
    """Return the words that each of the command's own options takes."""
    actions = own._option_string_actions.items()
    return {name: tuple(action.choices) for name, action in actions if action.choices and action.type is None}


def model_folder(name: str | None) -> str:
    """Find the folder, or the hub id, that `--model` names.

    Raises:
        UsageError: nothing given, or no such folder and no id.
    """
    what = (
        f"a folder, a hub id like ORG/NAME, or a shipped model: {', '.join(SHIPPED)}; names like FLUX.1-dev are for run"
    )
    if not name:
        raise UsageError(f"no model: give --model with {what}")
    if name in SHIPPED:
        return str(model_path(name))
    if not Path(name).is_dir() and (name.startswith(("/", ".", "~")) or name.count("/") != 1):
        near = unknown_option(name, SHIPPED, f"give {what}")
        raise UsageError(f"no such model: {name}", near.advice)
    return name


def is_preset(text: str | None) -> bool:
    """Tell whether a config is given as one word that is no file, and so must be the name of a preset."""
    return bool(text and _NAME.fullmatch(text)) and not Path(text or "").exists()


def named_config(text: str | None, model: str | None) -> FastCacheConfig:
    """Build the config that `--cache_config` names.

    Args:
        text: a JSON object, a YAML or JSON file, or the name of a preset of a shipped model; None for the defaults.
        model: whose presets are meant.
    Raises:
        UsageError: as `FastCacheConfig.from_json`, `from_file` and `preset`.
    """
    if not is_preset(text):
        return FastCacheConfig.from_text(text)
    if model not in SHIPPED:
        advice = "presets by name are those of shipped models, which fastcache-xdit presets lists"
        raise UsageError(f"no such config file: {text}", advice)
    return FastCacheConfig.preset(model, text or "")
