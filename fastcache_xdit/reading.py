"""How a config is read: from a dict, from text as given on a command line, or from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from fastcache_xdit.errors import UsageError

if TYPE_CHECKING:
    from typing_extensions import Self


class Readable:
    """Base of a config that is built from keywords, so that it can be read."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build a config from a dict of options.

        Raises:
            UsageError: an option does not exist, or cannot have this value.
        """
        if not isinstance(values, dict):
            raise UsageError(f"a FastCache config is a mapping of options, not {type(values).__name__}: {values!r}")
        return cls(**values)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Build a config from a JSON object; errors as in `from_dict`."""
        try:
            return cls.from_dict(json.loads(text))
        except json.JSONDecodeError as error:
            raise UsageError(f"the FastCache config is not valid JSON ({error}): {text!r}") from None

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Build a config from a YAML or JSON file.

        Raises:
            UsageError: there is no such file, it is not YAML, or as in `from_dict`; the message names the file.
        """
        values = _beside(Path(path).parent, read_yaml(path))
        try:
            return cls.from_dict(values)
        except UsageError as error:
            raise error.of(path) from None

    @classmethod
    def from_text(cls, text: str | None) -> Self:
        """Build a config from a JSON object or a path, as given on a command line; without text, the defaults."""
        if not text:
            return cls()
        return cls.from_json(text) if text.lstrip().startswith("{") else cls.from_file(text)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the options in a YAML or JSON file; an empty file has none.

    Raises:
        UsageError: there is no such file, or it is not YAML; the message names it.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"no such config file: {path}")
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    return {} if values is None else values


def _beside(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Resolve the path of a calibration against the folder of the config file, if the calibration is there."""
    name = values.get("calibration") if isinstance(values, dict) else None
    if isinstance(name, str) and (folder / name).is_file():
        return values | {"calibration": str(folder / name)}
    return values
