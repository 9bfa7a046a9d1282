"""Options of `presets`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastcache_xdit.shipped import SHIPPED


@dataclass(frozen=True)
class PresetsOptions:
    """Options of `presets`."""

    model: str | None
    json: bool


def add_arguments(group: Any) -> None:
    """Add the command's options."""
    group.add_argument("model", nargs="?", metavar="MODEL", help=f"one of {', '.join(SHIPPED)}; default: all of them")
    group.add_argument("--json", action="store_true", help="for programs")
