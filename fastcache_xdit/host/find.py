"""Finds the host of a pipeline or transformer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastcache_xdit.errors import UsageError
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
        if any(not 0 <= after < before <= 1 for before, after in zip(sigmas, sigmas[1:], strict=False)):
            raise UsageError(
                "sigmas are the noise levels of the steps, falling from 1 towards 0",
                "divide timesteps by the number of training steps",
            )
        host.sigmas = tuple(sigmas)
    return host
