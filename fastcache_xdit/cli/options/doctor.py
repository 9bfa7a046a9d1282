"""Options of `doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcache_xdit.shipped import SHIPPED, in_clone


@dataclass(frozen=True)
class DoctorOptions:
    """Options of `doctor`."""

    model: str | None
    calibration: tuple[Path, ...] | None
    json: bool


def add_arguments(parser: Any) -> None:
    """Add the command's options."""
    usual = SHIPPED[0] if in_clone() else None
    parser.add_argument("--model", default=usual, help="folder, hub id or shipped model; default: %(default)s")
    parser.add_argument(
        "--calibration", type=Path, nargs="*", metavar="FILE", help="of this model; default: those shipped with it"
    )
    parser.add_argument("--json", action="store_true", help="findings as one JSON object")
