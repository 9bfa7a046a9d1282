"""What a job gains from replicas, and what memory it takes as it goes on: real runs, each in processes of its own."""

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

LOOK = 0.2  # seconds between two looks at a run
# torchrun gives each of several ranks one thread, and a single rank every core: each replica shall have the same here.
THREADS = {"OMP_NUM_THREADS": "1"}
WINDOW = 20  # items over which memory is compared: as many early as late, since what is resident goes up and down


class Row(NamedTuple):
    """One run: `seconds` from launch to exit, `working_seconds` from the first claim to the last image."""

    replicas: int
    items: int
    seconds: float
    working_seconds: float


class Memory(NamedTuple):
    """Resident MiB of a process: the most over its first `WINDOW` items, and over its last."""

    items: int
    early: float
    late: float


def replicas(folder: Path, recipe: Recipe, prompts: Sequence[str], counts: Sequence[int]) -> list[Row]:
    """The same prompts with different numbers of one-rank replicas, each run in a new job below `folder`."""
    return [_timed(_job(folder / f"replicas-{count}", recipe, prompts), count) for count in counts]


def memory(folder: Path, recipe: Recipe, prompts: Sequence[str]) -> Memory:
    """Resident memory of one process over a job."""
    store = _job(folder / "memory", recipe, prompts)
    seen: list[tuple[int, float]] = []
    with subprocess.Popen(_command(store, 0)) as process:
        while process.poll() is None:
            seen.append((store.counts()["done"], _resident(process.pid)))
            time.sleep(LOOK)
    early = [size for done, size in seen if done <= WINDOW]
    late = [size for done, size in seen if done >= len(prompts) - WINDOW]
    return Memory(len(prompts), max(early), max(late))


def _job(folder: Path, recipe: Recipe, prompts: Sequence[str]) -> Store:
    return Store.create(folder, recipe, items_of([PromptLine(prompt=prompt) for prompt in prompts], recipe, pixels=1))


def _timed(store: Store, count: int) -> Row:
    start = time.perf_counter()
    subprocess.run(_command(store, count), check=True, env=THREADS | os.environ)
    totals = store.totals()
    return Row(count, store.counts()["done"], time.perf_counter() - start, totals["ended"] - totals["began"])


def _command(store: Store, ranks: int) -> list[str]:
    """`batch run` with as many one-rank replicas; without torchrun for 0."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks else []
    words = ["-m", "fastcache_xdit", "batch", "run", str(store.folder)]
    return [sys.executable, *torchrun, *words, "--data_parallel_degree", str(max(ranks, 1))]


def _resident(process: int) -> float:
    """MiB, 0 once it has ended."""
    try:
        fields = Path(f"/proc/{process}/statm").read_text().split()
    except OSError:
        return 0.0
    return int(fields[1]) * 4096 / 2**20
