"""Which host a target lives in."""

from __future__ import annotations

from typing import Any

from fastcache_xdit.host.base import Host
from fastcache_xdit.host.diffusers import diffusers_host
from fastcache_xdit.host.xdit.host import is_xdit, xdit_host


def host_of(target: Any) -> Host:
    """The host of a pipeline or transformer; errors as in `diffusers_host` and `xdit_host`."""
    return xdit_host(target) if is_xdit(target) else diffusers_host(target)
