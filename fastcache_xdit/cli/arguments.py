"""What the commands share: parsing that speaks on one rank only, and options from a YAML file."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from typing import Any, NoReturn

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.config import FastCacheConfig, read_yaml
from fastcache_xdit.options import unknown_option


def is_first_rank() -> bool:
    """Whether this process speaks for all; true without torchrun."""
    return os.environ.get("RANK", "0") == "0"


def parse(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """Parse on every rank; `--help` is printed by the first one only. Raises ValueError for bad arguments."""
    parser.error = _raise  # type: ignore[method-assign]  # xDiT's usage has a page of flags: the sentence is enough
    with contextlib.ExitStack() as stack:
        if not is_first_rank():
            silence = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(silence))
        return parser.parse_args(argv)


def _raise(message: str) -> NoReturn:
    raise ValueError(f"{message}; --help lists the options")


def read_options(parser: argparse.ArgumentParser, path: str) -> dict[str, Any]:
    """The options in a YAML mapping, as defaults for `parser`: flags on the command line still win.

    Raises:
        ValueError: no such file, not a mapping, or an option that the command does not have.
    """
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path}: a config file is a mapping of options, not {type(values).__name__}")
    actions = {flag.removeprefix("--"): action for flag, action in parser._option_string_actions.items()}
    for name in values:
        if name not in actions:
            raise ValueError(f"{path}: {unknown_option(name, actions)}")
    return {actions[name].dest: _as_default(path, name, actions[name], value) for name, value in values.items()}


def cache_config(text: str | dict[str, Any] | None) -> FastCacheConfig:
    """The config that `--cache_config` names: a JSON object, a YAML or JSON file, or the defaults.

    Raises:
        ValueError: as `FastCacheConfig.from_json` and `from_file`; or its calibration is missing, broken or altered.
    """
    config = FastCacheConfig.from_text(json.dumps(text) if isinstance(text, dict) else text)
    if config.calibration:
        Calibration.shared(config.calibration)  # what is wrong with the file is said before a model loads
    return config


def _as_default(path: str, name: str, action: argparse.Action, value: Any) -> Any:
    if isinstance(value, dict):
        return json.dumps(value)
    if action.choices and value not in action.choices:
        raise ValueError(f"{path}: {name} must be one of {', '.join(map(str, action.choices))}, not {value!r}")
    if action.nargs == "*" and isinstance(value, str):
        return [value]
    return str(value) if action.type is int and isinstance(value, float) else value
