"""Finds the host of a pipeline or transformer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from fastcache_xdit.errors import UsageError, quoted
from fastcache_xdit.host.base import Host
from fastcache_xdit.host.diffusers import diffusers_host
from fastcache_xdit.host.xdit.host import XditHost, is_xdit, ranks_share_requests


def host_of(target: Any, sigmas: Sequence[float] | None = None) -> Host:
    """Return the host of a pipeline or transformer.

    Args:
        target: the pipeline or transformer.
        sigmas: noise level of each step, 1 to 0, for a loop without a scheduler.
    Raises:
        UsageError: as `diffusers_host` and `XditHost`; or sigmas that do not fall, or beside a scheduler.
    """
    under_xdit = is_xdit(target) or ranks_share_requests()
    host: Host = XditHost(target) if under_xdit else diffusers_host(target)
    if sigmas is not None:
        if host.scheduler is not None:
            raise UsageError("sigmas are for a loop without a scheduler", "leave them away: the scheduler knows them")
        host.sigmas = _levels(sigmas)
    return host


def _levels(sigmas: Sequence[float]) -> tuple[float, ...]:
    """Return noise levels as numbers. Raises UsageError for other things, none at all, or ones that do not fall."""
    try:
        levels = tuple(float(sigma) for sigma in sigmas)
    except (TypeError, ValueError):
        levels = ()
    falls = all(before > after for before, after in pairwise(levels))
    if not levels or not falls or not all(0 <= level <= 1 for level in levels):
        raise UsageError(
            f"sigmas are the noise levels of the steps, at least one, falling from 1 towards 0, not {quoted(sigmas)}",
            "divide timesteps by the number of training steps",
        )
    return levels
