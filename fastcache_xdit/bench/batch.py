"""Measure what a job gains from replicas and what memory it takes, in real runs with processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fastcache_xdit.jobs.recipe import PromptLine, Recipe
from fastcache_xdit.jobs.store import Store
from fastcache_xdit.jobs.submit import items_of

LOOK_EVERY = 0.2  # seconds
# torchrun gives each of several ranks one thread, but a single rank every core; here all replicas get the same.
THREADS = {"OMP_NUM_THREADS": "1"}
WINDOW = 20  # items: resident memory goes up and down, so the most of the first is compared with the most of the last


class ReplicaTimes(NamedTuple):
    """One run: `seconds` from launch to exit, `working_seconds` from the first claim to the last image."""

    replicas: int
    items: int
    seconds: float
    working_seconds: float


class MemoryUse(NamedTuple):
    """Resident MiB of a process, at most, while it works on its first `WINDOW` items and on its last."""

    items: int
    early: float
    late: float


def replicas(folder: Path, recipe: Recipe, prompts: Sequence[str], counts: Sequence[int]) -> list[ReplicaTimes]:
    """Run the same prompts with each number of one-rank replicas, as jobs below `folder`."""
    return [_timed(_job(folder / f"replicas-{count}", recipe, prompts), count) for count in counts]


def memory(folder: Path, recipe: Recipe, prompts: Sequence[str]) -> MemoryUse:
    """Run a job in one process and watch its resident memory."""
    store = _job(folder / "memory", recipe, prompts)
    seen: list[tuple[int, float]] = []
    with subprocess.Popen(_command(store, 0)) as process:
        while process.poll() is None:
            seen.append((store.counts()["done"], _resident(process.pid)))
            time.sleep(LOOK_EVERY)
    early = [size for done, size in seen if done <= WINDOW]
    late = [size for done, size in seen if done >= len(prompts) - WINDOW]
    return MemoryUse(len(prompts), max(early), max(late))


def _job(folder: Path, recipe: Recipe, prompts: Sequence[str]) -> Store:
    return Store.create(folder, recipe, items_of([PromptLine(prompt=prompt) for prompt in prompts], recipe, pixels=1))


def _timed(store: Store, count: int) -> ReplicaTimes:
    start = time.perf_counter()
    subprocess.run(_command(store, count), check=True, env=THREADS | os.environ)
    totals = store.totals()
    return ReplicaTimes(count, store.counts()["done"], time.perf_counter() - start, totals["ended"] - totals["began"])


def _command(store: Store, ranks: int) -> list[str]:
    """Return the command line of `batch run` on so many ranks, each a replica; without torchrun for 0."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks else []
    words = ["-m", "fastcache_xdit", "batch", "run", str(store.folder)]
    return [sys.executable, *torchrun, *words, "--data_parallel_degree", str(max(ranks, 1))]


def _resident(process: int) -> float:
    """Return MiB, 0 once the process has ended."""
    try:
        fields = Path(f"/proc/{process}/statm").read_text().split()
    except OSError:
        return 0.0
    return int(fields[1]) * 4096 / 2**20
