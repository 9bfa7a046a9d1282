"""Versions of the software that a measurement depends on."""

from __future__ import annotations

import platform
from importlib.metadata import version


def versions() -> dict[str, str]:
    """Return the versions of Python and of the main packages, by name."""
    packages = ("torch", "diffusers", "xfuser", "fastcache_xdit")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
