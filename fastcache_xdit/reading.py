"""How a config is read: from a dict, from text as given on a command line, or from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from fastcache_xdit.errors import UsageError, quoted

if TYPE_CHECKING:
    from typing_extensions import Self

LARGEST = 1_000_000  # bytes of a config file


class Readable:
    """Base of a config that is built from keywords, so that it can be read."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build a config from a dict of options.

        Raises:
            UsageError: an option does not exist, or cannot have this value.
        """
        if not isinstance(values, dict):
            problem = f"a FastCache config is a mapping of options, not {type(values).__name__}: {quoted(values)}"
            raise UsageError(problem)
        for name in values:
            if not isinstance(name, str):
                raise UsageError(f"an option has a name, not {quoted(name)}")
        return cls(**values)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Build a config from a JSON object; errors as in `from_dict`."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:  # also for numbers of thousands of digits, and deep nesting
            raise UsageError(f"the FastCache config is not valid JSON ({error}): {quoted(text)}") from None
        return cls.from_dict(values)

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
    try:
        if not path.is_file():
            raise UsageError(f"no such config file: {path}")
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise UsageError(f"{path} is larger than {LARGEST} bytes", "is it a config file?")
        values = yaml.load(content.decode(), _Plain)  # a safe loader
    except OSError as error:
        raise UsageError(f"no config file can be read at {quoted(str(path))}: {error.strerror}") from None
    except RecursionError:
        raise UsageError(f"{path} is nested too deeply", "options are names with values") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    return {} if values is None else values


class _Plain(yaml.SafeLoader):
    """YAML without aliases, with which a small file can stand for a huge one."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not taken; write the value again")
        return super().compose_node(parent, index)


def _beside(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Resolve the path of a calibration against the folder of the config file, if the calibration is there."""
    name = values.get("calibration") if isinstance(values, dict) else None
    if isinstance(name, str) and (folder / name).is_file():
        return values | {"calibration": str(folder / name)}
    return values
