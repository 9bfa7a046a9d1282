"""Fixes for defects of xDiT 0.7 that change its results, or stop it, even without a cache.

They are needed because a cached run can only be compared with an uncached one that is right. Each fix is a row of
`FIXES` and is undone with the undo log.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Callable
from dataclasses import dataclass

from fastcache_xdit.host.xdit.fixes import cosmos, flux, groups, keys_values, latte, padding, requests
from fastcache_xdit.host.xdit.fixes.limits import refuse
from fastcache_xdit.undo import Undo

__all__ = ["FIXES", "Fix", "apply_fixes", "refuse", "supported"]

RELEASE = "0.7"  # the fixes were written for and tested with this release of xfuser

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fix:
    """One defect and its fix.

    Attributes:
        name: short name, as in `Report.fixes`.
        reason: what is wrong without the fix.
        apply: applies it; returns False and changes nothing if this layout cannot meet the defect.
    """

    name: str
    reason: str
    apply: Callable[[Undo], bool]


FIXES = (
    Fix("double-kv-update", "keys and values of joint attention are stored twice in a call", keys_values.once),
    Fix("patch-order", "the first patch overwrites another patch's keys and values", keys_values.by_patch),
    Fix("tensor-ulysses-groups", "sequence groups ignore tensor parallelism", groups.follow_tensor_parallel),
    Fix("flux-odd-lengths", "FLUX.1 counts replicated text and padding as keys", flux.odd_lengths),
    Fix("flux2-shared-text", "FLUX.2 counts replicated text as keys once per rank", flux.shared_text),
    Fix("cosmos3-shared-text", "Cosmos 3 counts replicated text as keys once per rank", cosmos.shared_text),
    Fix("latte-frames", "Latte's attention over frames is exchanged between ranks", latte.local_frames),
    Fix("padded-keys", "attention without packing attends to the padding of MiniMax H3", padding.trailing_keys),
    Fix("unequal-patches", "sequence ranks disagree on the height of a patch", requests.unequal_patches),
    Fix("warmup-clamp", "a short request shortens the warm-up of all later ones", requests.warmup_clamp),
)


def apply_fixes(undo: Undo) -> list[str]:
    """Apply every fix that this layout needs and return their names.

    Every rank must call this, after xDiT made its groups. With another release of xfuser than `RELEASE`, nothing is
    applied and a warning says so.
    """
    version = importlib.metadata.version("xfuser")
    if not supported(version):
        _log.warning("xfuser %s is not %s.x: its known defects are left as they are", version, RELEASE)
        return []
    return [fix.name for fix in FIXES if fix.apply(undo)]


def supported(version: str) -> bool:
    """Return whether the fixes were written for this version of xfuser."""
    return version == RELEASE or version.startswith(RELEASE + ".")
