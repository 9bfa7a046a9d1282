"""xDiT's flags that offload weights to the CPU: refused where they would have no effect."""

from __future__ import annotations

import argparse

from fastcache_xdit.errors import UsageError
from fastcache_xdit.host import cpu

FLAGS = ("enable_model_cpu_offload", "enable_sequential_cpu_offload", "enable_group_cpu_offload")


def check_offload(parsed: argparse.Namespace, by_runner: bool) -> None:
    """Raise UsageError for an offload flag without accelerator, or where xDiT's runner does not load the model.

    Args:
        parsed: the command line.
        by_runner: whether the runner loads it, which alone offloads.
    """
    name = next((name for name in FLAGS if getattr(parsed, name)), None)
    if name and not cpu.has_accelerator():
        raise UsageError(f"--{name}: there is no accelerator here, and so nothing to offload", "leave it out")
    if name and not by_runner:
        raise UsageError(
            f"--{name} has no effect in this command, which keeps weights on the accelerator",
            "take the command run, or call the pipeline's own method in a script: the cache works with it",
        )
