"""Options of `run`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastcache_xdit.cli.options.goals import add_goals
from fastcache_xdit.host.xdit.layout import Layout

if TYPE_CHECKING:
    from fastcache_xdit.host.xdit.loading import XditOptions


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of `run`: what it reads itself of xDiT's runner flags, and all of them, which xDiT's runner takes."""

    model: str
    cache_method: str | None
    cache_config: str | None
    goals: Mapping[str, float]
    attention_backend: str | None
    output_directory: str
    layout: Layout
    xdit: XditOptions
    flags: Mapping[str, Any]


def add_arguments(parser: Any) -> None:
    """Add what `run` takes beside xDiT's runner flags."""
    parser.add_argument("--config", metavar="FILE.yaml", help="options by name; flags win over it")
    parser.add_argument(
        "--output",
        dest="output_directory",
        default=".",
        metavar="FOLDER",
        help="for what is generated and timings.json; default: this folder",
    )
    add_goals(parser)
