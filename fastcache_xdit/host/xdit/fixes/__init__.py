"""Cures for defects of xDiT 0.7 that change its results, or stop it, with no cache at all.

A cached run can be compared with nothing while the uncached one is wrong. Each fix is one row of `FIXES`, goes
through the undo log, and leaves with it.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Callable
from dataclasses import dataclass

from fastcache_xdit.host.xdit.fixes import flux, groups, keys_values, requests
from fastcache_xdit.host.xdit.fixes.limits import refuse
from fastcache_xdit.undo import Undo

__all__ = ["FIXES", "Fix", "apply_fixes", "refuse", "supported"]

RELEASE = "0.7"  # the fixes were written against, and checked with, this release of xfuser only

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fix:
    """One defect and its cure; `apply` changes nothing and returns False where the layout cannot meet the defect."""

    name: str
    reason: str
    apply: Callable[[Undo], bool]


FIXES = (
    Fix("double-kv-update", "keys and values of joint attention are stored twice in a call", keys_values.once),
    Fix("patch-order", "the first patch overwrites another patch's keys and values", keys_values.by_patch),
    Fix("tensor-ulysses-groups", "sequence groups ignore tensor parallelism", groups.follow_tensor_parallel),
    Fix("flux-odd-lengths", "FLUX.1 counts replicated text and padding as keys", flux.odd_lengths),
    Fix("flux2-shared-text", "FLUX.2 counts replicated text as keys once per rank", flux.shared_text),
    Fix("unequal-patches", "sequence ranks disagree on the height of a patch", requests.unequal_patches),
    Fix("warmup-clamp", "a short request shortens the warm-up of all later ones", requests.warmup_clamp),
)


def apply_fixes(undo: Undo) -> list[str]:
    """Apply every fix that this layout can need and return their names; all ranks call it, after xDiT made its groups.

    Outside the release that the fixes were written for, nothing is applied and a warning says so.
    """
    version = importlib.metadata.version("xfuser")
    if not supported(version):
        _log.warning("xfuser %s is not %s.x: its known defects are left as they are", version, RELEASE)
        return []
    return [fix.name for fix in FIXES if fix.apply(undo)]


def supported(version: str) -> bool:
    """Return whether the fixes were written for this version of xfuser."""
    return version == RELEASE or version.startswith(RELEASE + ".")
