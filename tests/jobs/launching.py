"""Real runs of `batch run`: started, watched, killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from fastcache_xdit.cli.main import main
from fastcache_xdit.jobs.export import damaged
from fastcache_xdit.jobs.store import Store
from shapes.sampling import prompts
from tests.parallel.launch import children_of, end, environment, only_cluster

COUNT = 60
LIMIT = 600.0  # seconds for one launch, on a machine that does other things as well
SMALL = ["--model", "shapes-pixart", "--num_inference_steps", "8", "--height", "64", "--width", "64"]
CACHED = ["--cache", "fastcache", "--cache_config", '{"test": "paper", "error_budget": 2}']


def submit(folder: Path, count: int, *words: str) -> Store:
    """A job of `count` small images, cached so that blocks are skipped."""
    file = folder.parent / f"{folder.name}.txt"
    file.write_text("\n".join(prompts(count, 0)))
    assert main(["batch", "submit", str(folder), "--prompts", str(file), *SMALL, *CACHED, *words]) == 0
    return Store(folder)


@contextlib.contextmanager
def launched(ranks: int, *words: str, program: str = "fastcache_xdit", **variables: str) -> Iterator[subprocess.Popen]:
    """`batch run` under torchrun, or in one process where `ranks` is 0; nothing of it is left behind."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks else []
    command = [sys.executable, *torchrun, "-m", program, "batch", "run", *words]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with only_cluster() if "--ray" in words else contextlib.nullcontext():
        process = subprocess.Popen(command, env={**environment(), **variables}, start_new_session=True, **streams)
        try:
            yield process
        finally:
            end(process)


def ranks_of(launcher: subprocess.Popen, count: int) -> list[int]:
    """Process ids of its ranks, once there are `count`; [] where it ended before."""
    while launcher.poll() is None:
        if len(found := children_of(launcher.pid)) >= count:
            return found
        time.sleep(0.05)
    return []


def wait_for(store: Store, done: int, launcher: subprocess.Popen) -> None:
    """Wait until so many items are done, or the run is over."""
    while store.counts()["done"] < done and launcher.poll() is None:
        time.sleep(0.02)


def told(launcher: subprocess.Popen) -> str:
    """What it wrote, once it has ended."""
    return launcher.communicate(timeout=LIMIT)[0]


def kill(process: int) -> bool:
    """SIGKILL; whether it was there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
        return True
    return False


def check_equal(job: Store, undisturbed: Store) -> None:
    """Every image is there once, whole, and what the undisturbed run made."""
    count = len(undisturbed.items())
    assert job.counts() == {"pending": 0, "running": 0, "done": count, "failed": 0}
    assert [item.checksum for item in job.items()] == [item.checksum for item in undisturbed.items()]
    assert damaged(job) == []
    names = sorted(path.name for path in (job.folder / "images").iterdir())
    assert names == [f"{index:06d}.png" for index in range(count)]
