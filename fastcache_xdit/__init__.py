"""FastCache (arXiv 2505.20353) as a cache strategy of xDiT: decisions that stay consistent over parallel ranks."""

import importlib
from typing import TYPE_CHECKING, Any

from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.errors import FastCacheError, RankDivergenceError, UsageError
from fastcache_xdit.handle import Handle
from fastcache_xdit.plugin import enable, fastcache, register
from fastcache_xdit.runtime.report import Report

if TYPE_CHECKING:
    from fastcache_xdit.tuning.api import calibrate, tune

__all__ = [
    "FastCacheConfig",
    "FastCacheError",
    "Handle",
    "RankDivergenceError",
    "Report",
    "UsageError",
    "calibrate",
    "enable",
    "fastcache",
    "register",
    "tune",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import what measures when it is asked for, since it imports far more than a cache needs."""
    if name in ("calibrate", "tune"):
        return getattr(importlib.import_module("fastcache_xdit.tuning.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
