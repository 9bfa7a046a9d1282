"""What all commands share: parsing, typed options, and options from a YAML file."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from fastcache_xdit.errors import UsageError, quoted
from fastcache_xdit.host.xdit import layout, world
from fastcache_xdit.options import unknown_option
from fastcache_xdit.reading import read_yaml

Kind = TypeVar("Kind")


def parse(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """Parse a command line. Raises UsageError for bad arguments."""
    parser.error = _raise  # type: ignore[method-assign]  # xDiT's usage has a page of flags: the sentence is enough
    return parser.parse_args(argv)


def fill(kind: type[Kind], parsed: argparse.Namespace, **made: Any) -> Kind:
    """Build a command's options, a dataclass: each field is the parsed option of its name, or one of `made`.

    Lists become tuples, because options are frozen.
    """
    names = {field.name for field in dataclasses.fields(kind)} - made.keys()  # type: ignore[arg-type]
    values = {name: getattr(parsed, name) for name in names}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}, **made)


def parsed(argv: list[str], add_arguments: Callable[[Any], None]) -> argparse.Namespace:
    """Parse the words of a command that takes no flags of xDiT's. Raises UsageError as `parse`."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parse(parser, argv)


def own_options(kind: type[Kind], argv: list[str], add_arguments: Callable[[Any], None]) -> Kind:
    """Build the options of such a command. Raises UsageError as `parse`."""
    return fill(kind, parsed(argv, add_arguments))


def _raise(message: str) -> NoReturn:
    raise UsageError(message, "--help lists the options")


def look_ahead(argv: Sequence[str], *names: str) -> tuple[argparse.Namespace, list[str]]:
    """Read the options that decide how the others are read; return them and the rest of the command line."""
    ahead = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in names:
        ahead.add_argument(f"--{name}", nargs="?")
    return ahead.parse_known_args(argv)


def read_options(parser: argparse.ArgumentParser, path: str, argv: Sequence[str]) -> dict[str, Any]:
    """Read the options in a YAML mapping, as defaults for `parser`: flags on the command line `argv` still win.

    Of its `layouts`, a table {number of ranks: degrees}, the one for the ranks that were started is taken; none where
    the command line gives degrees of its own.

    Raises:
        UsageError: no such file, not a mapping, no layout, or an option that the command does not have.
    """
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise UsageError(f"{path}: a config file is a mapping of options, not {type(values).__name__}")
    values = _with_layout(path, values, argv)
    actions = {flag.removeprefix("--"): action for flag, action in parser._option_string_actions.items()}
    for name in values:
        if not isinstance(name, str):
            raise UsageError(f"{path}: an option has a name, not {quoted(name)}")
        if name not in actions:
            raise unknown_option(name, actions).of(path)
    return {actions[name].dest: _as_default(path, name, actions[name], value) for name, value in values.items()}


def as_flags(options: Mapping[str, Any]) -> list[str]:
    """Write options as the words of a command line, for a program that reads no file."""
    words: list[str] = []
    for name, value in options.items():
        if isinstance(value, list):
            words += [f"--{name}", *map(str, value)]
        elif value is True:
            words.append(f"--{name}")
        elif value not in (None, False):
            words.append(f"--{name}={value}")
    return words


def check_least(least: int, **numbers: float | Sequence[float] | None) -> None:
    """Raise UsageError for a number, or one of several, that is below `least`; None counts as not given."""
    for name, given in numbers.items():
        for number in given if isinstance(given, Sequence) else [given]:
            if number is not None and number < least:
                raise UsageError(f"{name}={number} is not possible", f"set {least} or more")


def named_in(argv: Sequence[str]) -> set[str]:
    """Name the options that a command line gives, as they are called in a config file."""
    return {word.partition("=")[0].lstrip("-").replace("-", "_") for word in argv if word.startswith("--")}


def _with_layout(path: str, values: dict[str, Any], argv: Sequence[str]) -> dict[str, Any]:
    if "layouts" not in values:
        return values
    table = values.pop("layouts")
    try:
        return values if named_in(argv) & set(layout.PARALLEL) else values | layout.from_table(table, world.size())
    except UsageError as error:
        raise error.of(path) from None


def _as_default(path: str, name: str, action: argparse.Action, value: Any) -> Any:
    if isinstance(value, dict):
        return json.dumps(value)
    if action.choices and value not in action.choices:
        raise UsageError(f"{path}: {name} must be one of {', '.join(map(str, action.choices))}, not {value!r}")
    if action.nargs == "*" and isinstance(value, str):
        return [value]
    return str(value) if action.type is int and isinstance(value, float) else value
