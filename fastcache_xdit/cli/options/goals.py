"""One goal for the cache on a command line, for all commands that generate."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from fastcache_xdit.errors import UsageError
from fastcache_xdit.goal import GOALS
from fastcache_xdit.host.xdit.flags import METHOD

HELP = {
    "budget": "the share of the steps that are computed, such as 0.4; default: 0.5",
    "speedup": "instead, a factor in wall time, such as 2.5",
    "psnr": "instead, the mean PSNR in dB against uncached pictures, such as 36",
}


def add_goals(group: Any) -> None:
    """Add a flag for each goal of a cache."""
    for kind in GOALS:
        group.add_argument(f"--{kind}", type=float, metavar="NUMBER", help=f"with --cache fastcache: {HELP[kind]}")


def goals_of(parsed: argparse.Namespace) -> dict[str, float]:
    """Return the goals that a command line gives; none for a command without their flags."""
    return {kind: value for kind in GOALS if (value := getattr(parsed, kind, None)) is not None}


def refuse_goals(goals: Mapping[str, float]) -> None:
    """Raise UsageError where there are any, without the cache whose goals they are."""
    if goals:
        raise UsageError(f"--{next(iter(goals))} is a goal of the cache", f"add --cache {METHOD}")
