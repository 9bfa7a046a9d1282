"""Run a worker script on real ranks: torchrun, gloo, one thread each, and a time limit that leaves nothing running."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[2]
TAIL = 4000  # characters of each rank's output shown when a run fails


def run_ranks(worker: str, nproc: int, timeout: float = 600.0, **arguments: Any) -> list[Any]:
    """Start `tests/parallel/<worker>` on `nproc` ranks and return what each rank's `main(**arguments)` returned.

    `worker` is a script that ends in `report(main)` of `tests.parallel.ranks`; `arguments` travel as JSON, results
    through `torch.save`. Starting ranks costs many seconds, so a worker should run many cases.

    Raises:
        RuntimeError: a rank failed or the time ran out; the message ends with each rank's last output.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "arguments.json").write_text(json.dumps(arguments))
        code = _run(_command(worker, nproc, folder), timeout)
        if code != 0:
            cause = f"took longer than {timeout:.0f} s" if code is None else f"ended with code {code}"
            raise RuntimeError(f"{worker} on {nproc} ranks {cause}\n{tails(folder)}")
        return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(nproc)]


def only(results: list[dict], case: str) -> Any:
    """Return a case's result from the first rank that has one: xDiT leaves latents on the last ranks only."""
    return next(result[case] for result in results if result.get(case) is not None)


def free_port() -> int:
    """A port to listen on that lies below those which systems give to outgoing connections, Ray's many among them.

    Tests that run side by side look in another hundred each, as the port is only taken later.
    """
    first = 29500 + 100 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for port in range(first, first + 100):
        with contextlib.suppress(OSError), socket.create_server(("", port)):
            return port
    raise RuntimeError(f"no port from {first} to {first + 99} is free")


def only_cluster() -> FileLock:
    """A lock for tests that start a Ray cluster: one at a time on a machine."""
    return FileLock(Path(tempfile.gettempdir()) / "fastcache-tests-ray.lock")


def environment() -> dict[str, str]:
    """Return what ranks need of the environment: this checkout, one thread, nothing fetched."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **offline}


def _command(worker: str, nproc: int, folder: Path) -> list[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={nproc}"]
    logs = ["--log-dir", str(folder / "logs"), "--redirects", "3"]
    return [*torchrun, *logs, str(Path(__file__).parent / worker), str(folder)]


def _run(command: list[str], timeout: float) -> int | None:
    """Return the exit code, None where the time ran out."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=environment(), cwd=ROOT, start_new_session=True, **quiet)
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        ask_where(process)
        return None
    finally:
        end(process)


def ask_where(process: subprocess.Popen) -> None:
    """Have every rank write its stack to its log: a hang says nothing else."""
    for rank in children_of(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(rank, signal.SIGUSR1)
    time.sleep(1)


def end(process: subprocess.Popen) -> None:
    """Kill the launcher and its ranks, each of which leads a process group of its own."""
    if process.poll() is not None:
        return
    ranks = children_of(process.pid)
    for leader in (process.pid, *ranks):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, signal.SIGKILL)
    process.wait()


def children_of(parent: int) -> list[int]:
    """Return the direct children, read from /proc; where there is none, the launcher's own SIGKILL has to do."""
    with contextlib.suppress(OSError):
        return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    return []


def tails(folder: Path) -> str:
    time.sleep(0.2)  # let the logs of killed ranks reach the disk
    files = sorted((folder / "logs").rglob("std*.log"), key=lambda path: (path.parent.name, path.name))
    texts = [(path, path.read_text(errors="replace").strip()) for path in files]
    return "\n".join(f"--- rank {path.parent.name} {path.stem}\n{_tail(text)}" for path, text in texts if text)


def _tail(text: str) -> str:
    """Return the last traceback with what follows it, or the last lines where there is none."""
    return text[max(text.rfind("Traceback"), 0) :][-TAIL:]
