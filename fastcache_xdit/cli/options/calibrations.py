"""Options of the actions of `calibrations`."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def add_list(group: Any) -> None:
    """Add the options of `calibrations list`."""
    group.add_argument("--json", action="store_true", help="for programs: the folder, and all facts of each")


def add_show(group: Any) -> None:
    """Add what takes one calibration."""
    group.add_argument("name", metavar="NAME", help="of calibrations list, or its beginning")


def add_remove(group: Any) -> None:
    """Add the options of `calibrations remove`."""
    group.add_argument("names", nargs="*", metavar="NAME", help="of calibrations list, or its beginning")
    group.add_argument("--all", action="store_true", help="all of them")


def add_export(group: Any) -> None:
    """Add the options of `calibrations export`."""
    add_show(group)
    group.add_argument("--output", type=Path, required=True, metavar="FILE", help="a .safetensors file")
