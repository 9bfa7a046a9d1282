"""Versions of what a measurement depends on."""

from __future__ import annotations

import platform
from importlib.metadata import version


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that compute."""
    packages = ("torch", "diffusers", "xfuser", "fastcache_xdit")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
