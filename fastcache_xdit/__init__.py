"""FastCache (arXiv 2505.20353) as a cache strategy of xDiT: decisions that stay consistent over parallel ranks."""

from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.plugin import Handle, enable, fastcache, register

__all__ = ["FastCacheConfig", "Handle", "enable", "fastcache", "register"]
__version__ = "0.1.0"
