"""Options of `report`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Options of `report`."""

    folder: Path
    output: Path | None
    markdown: Path | None


def add_arguments(group: Any) -> None:
    """Add the command's options."""
    group.add_argument("folder", type=Path, help="results of bench peers, of one model or of many")
    group.add_argument("--output", type=Path, metavar="FILE.html", help="default: report.html in the folder")
    group.add_argument(
        "--markdown", type=Path, metavar="FILE.md", help="write tables as well, and a figure beside them"
    )
