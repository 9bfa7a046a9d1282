"""Options of `models`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ModelsOptions:
    """Options of `models`."""

    name: str | None
    json: bool


def add_arguments(parser: Any) -> None:
    """Add the command's options."""
    parser.add_argument("name", nargs="?", help="a transformer class; default: all of them")
    parser.add_argument("--json", action="store_true", help="as one JSON object")
