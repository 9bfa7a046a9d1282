"""FastCache (arXiv 2505.20353) as a cache strategy of xDiT: decisions that stay consistent over parallel ranks."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastcache_xdit.config import FastCacheConfig
    from fastcache_xdit.errors import FastCacheError, RankDivergenceError, UsageError
    from fastcache_xdit.handle import Handle
    from fastcache_xdit.plugin import enable, fastcache, register
    from fastcache_xdit.runtime.report import Report
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
_PLACES = {
    "config": ("FastCacheConfig",),
    "errors": ("FastCacheError", "RankDivergenceError", "UsageError"),
    "handle": ("Handle",),
    "plugin": ("enable", "fastcache", "register"),
    "runtime.report": ("Report",),
    "tuning.api": ("calibrate", "tune"),
}


def __getattr__(name: str) -> Any:
    """Import what is asked for, and no more: torch alone takes seconds, which `--help` need not."""
    for place, names in _PLACES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{place}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names as well, imported or not."""
    return sorted({*globals(), *__all__})
