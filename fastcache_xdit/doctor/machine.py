"""Examine this machine: packages, devices, messages between ranks, attention, kernels."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
from collections.abc import Iterator
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from packaging.requirements import Requirement

from fastcache_xdit.doctor.finding import Finding, problem, tried
from fastcache_xdit.host import cpu
from fastcache_xdit.host.xdit import loading, world
from fastcache_xdit.plugin import register

PACKAGE, GPU_EXTRA = "fastcache_xdit", "gpu"
NAMED = ("torch", "xfuser", "diffusers", "transformers")  # the others are named where they do not fit
MESSAGE = 4096  # numbers
PATIENCE = timedelta(seconds=60)


def examine() -> Iterator[Finding]:
    """Examine all that needs no model."""
    yield packages()
    yield devices()
    yield tried("xdit", xdit, "install what it names, or reinstall: pip install --force-reinstall 'xfuser>=0.7,<0.8'")
    yield tried(
        "messages", messages, "check that this machine's own name resolves, and that NCCL_* and GLOO_* are right"
    )
    yield attention()
    yield kernels()


def places() -> int:
    """Count the ranks that fit: one for each accelerator, or for each core that this process may use."""
    return torch.accelerator.device_count() if cpu.has_accelerator() else _cores()


def packages() -> Finding:
    """Tell whether the packages that this one needs are installed, in versions that fit."""
    try:
        asked = requirements()
    except PackageNotFoundError:
        return problem("packages", f"{PACKAGE} itself is not installed", "run pip install . in the project's folder")
    wrong = [requirement for requirement in asked if not _fits(requirement)]
    if wrong:
        found = ", ".join(f"{requirement.name} {_version(requirement.name)}" for requirement in wrong)
        return problem("packages", found, f"pip install {' '.join(map(_quoted, wrong))}")
    named = ", ".join(f"{name} {_version(name)}" for name in NAMED)
    return Finding("packages", f"Python {platform.python_version()}, {named}; all {len(asked)} in range")


def requirements(extra: str = "") -> list[Requirement]:
    """List what this package needs, or what one of its extras adds.

    Raises:
        PackageNotFoundError: this package is not installed.
    """
    marker = f'extra == "{extra}"' if extra else None
    asked = [Requirement(line) for line in requires(PACKAGE) or ()]
    return [requirement for requirement in asked if (requirement.marker and str(requirement.marker)) == marker]


def devices() -> Finding:
    """Name the accelerators, or tell that there are none."""
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        return Finding("devices", f"{places()} x {torch.cuda.get_device_name(0)}, {memory:.0f} GiB each")
    found = f"{_cores()} CPU cores, no GPU that torch can use"
    if not Path("/dev/nvidiactl").exists():
        return Finding("devices", found)
    advice = "check nvidia-smi and the driver" if torch.version.cuda else "install a CUDA build: see pytorch.org"
    return problem("devices", f"{found}, but the machine has one", advice)


def xdit() -> Finding:
    """Tell whether xDiT can be imported, and takes FastCache."""
    loading.prepare()
    register()
    return Finding("xdit", "imports, and knows --cache fastcache")


def messages() -> Finding:
    """Send one message among all ranks that were started, or from this one to itself."""
    backend, ranks = "nccl" if torch.cuda.is_available() else "gloo", world.size()
    if not torch.distributed.is_backend_available(backend):
        return problem("messages", f"torch was built without {backend}", "install a build from pytorch.org")
    if _sum_over_ranks(backend, ranks) != ranks * MESSAGE:
        return problem("messages", f"{backend} adds wrongly over {ranks} ranks", "check the network and its driver")
    return Finding("messages", f"{backend} works, tried with {ranks} rank{'s' * (ranks > 1)}")


def attention() -> Finding:
    """Tell whether flash-attn is installed and fits torch; only accelerators use it."""
    if not cpu.has_accelerator():
        return Finding("attention", "PyTorch's own; flash-attn is for GPUs")
    asked = " ".join(map(_quoted, requirements(GPU_EXTRA)))
    install = f"pip install --no-build-isolation {asked}"
    if not all(map(_fits, requirements(GPU_EXTRA))):
        return Finding("attention", f"flash-attn {_version('flash-attn')}", f"attention is faster with it: {install}")
    return tried("attention", _flash, f"built for another torch: {install} --force-reinstall --no-cache-dir")


def kernels() -> Finding:
    """Tell whether Triton is installed and, for GPUs, the compiler that it calls."""
    if not cpu.has_accelerator():
        return tried("triton", _triton, "pip install triton; xDiT imports it on every machine")
    if not any(shutil.which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang")):
        return problem("triton", "no C compiler, which Triton calls", "apt-get install gcc, or set CC")
    return tried("triton", _triton, "pip install triton")


def _flash() -> Finding:
    importlib.import_module("flash_attn")
    return Finding("attention", f"flash-attn {_version('flash-attn')}")


def _triton() -> Finding:
    importlib.import_module("triton")
    return Finding("triton", _version("triton") + ("" if cpu.has_accelerator() else "; its kernels are for GPUs"))


def _sum_over_ranks(backend: str, ranks: int) -> float:
    alone: dict[str, Any] = {"store": torch.distributed.HashStore(), "rank": 0, "world_size": 1}
    torch.distributed.init_process_group(backend, timeout=PATIENCE, **(alone if ranks == 1 else {}))
    try:
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if backend == "nccl" else "cpu"
        message = torch.ones(MESSAGE, device=device)
        torch.distributed.all_reduce(message)
        return message.sum().item()
    finally:
        torch.distributed.destroy_process_group()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _fits(requirement: Requirement) -> bool:
    try:
        return requirement.specifier.contains(version(requirement.name), prereleases=True)
    except PackageNotFoundError:
        return False


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "is missing"


def _quoted(requirement: Requirement) -> str:
    text = f"{requirement.name}{requirement.specifier}"
    return f"'{text}'" if requirement.specifier else text
