"""Finds the host of a pipeline or transformer."""

from __future__ import annotations

from typing import Any

from fastcache_xdit.host.base import Host
from fastcache_xdit.host.diffusers import diffusers_host
from fastcache_xdit.host.xdit.host import XditHost, is_xdit


def host_of(target: Any) -> Host:
    """Return the host of a pipeline or transformer; raises as `diffusers_host` and `XditHost` do."""
    return XditHost(target) if is_xdit(target) else diffusers_host(target)
