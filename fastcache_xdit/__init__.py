"""FastCache (arXiv 2505.20353) as a cache strategy of xDiT: decisions that stay consistent over parallel ranks."""

from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.errors import FastCacheError, RankDivergenceError, UsageError
from fastcache_xdit.handle import Handle, Report
from fastcache_xdit.plugin import enable, fastcache, register

__all__ = [
    "FastCacheConfig",
    "FastCacheError",
    "Handle",
    "RankDivergenceError",
    "Report",
    "UsageError",
    "enable",
    "fastcache",
    "register",
]
__version__ = "0.1.0"
