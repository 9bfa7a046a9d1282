"""Record where and how a benchmark was run."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from fastcache_xdit.bench.peers.measurement import NOT_INSTALLED


def digest(*contents: bytes) -> str:
    """Return twelve hexadecimal digits that tell contents apart."""
    return hashlib.sha256(b"".join(contents)).hexdigest()[:12]


def circumstances(ranks: int) -> dict[str, str]:
    """Return machine, date and command line."""
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    return {"machine": machine(), "date": now, "command": command(ranks)}


def command(ranks: int) -> str:
    """Return this process's command line, as a user would type it."""
    start = f"torchrun --nproc_per_node {ranks}" if ranks > 1 else "python"
    return f"{start} -m fastcache_xdit {shlex.join(sys.argv[1:])}"


def package_version(package: str) -> str:
    """Return the installed version of a distribution, or `NOT_INSTALLED`."""
    try:
        return version(package)
    except PackageNotFoundError:
        return NOT_INSTALLED


def machine() -> str:
    """Name the accelerator, or the processor with its cores and the threads of a process."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"{os.cpu_count()} cores of {_processor()}, {threads} thread{'s' * (threads > 1)} a process"


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
