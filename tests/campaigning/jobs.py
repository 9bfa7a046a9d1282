"""Batch jobs that something happens to: nothing hangs, and in the end every image is that of an undisturbed job."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

from fastcache_xdit.cli.main import main
from fastcache_xdit.jobs.export import damaged
from fastcache_xdit.jobs.store import Store
from tests.campaigning.draw import JOB_LAYOUTS, Run
from tests.campaigning.faulty import WORDS
from tests.jobs.launching import kill, launched, ranks_of, submit, wait_for

COUNT, STEPS = 6, 4
PATIENCE = 240.0  # seconds for one launch, on a machine that does other things as well
SMALL = ("--num_inference_steps", str(STEPS), "--lease", "20")


class Trial:
    """One job, and what does not hold of it."""

    def __init__(self, run: Run, folder: Path) -> None:
        self.run = run
        self.ranks, self.words = JOB_LAYOUTS[run.case["layout"]]
        self.job = _submitted(folder)
        self.problems: list[str] = []
        self.said: list[str] = []

    @contextlib.contextmanager
    def started(self, program: str = "fastcache_xdit") -> Iterator[subprocess.Popen]:
        """Start `batch run`; wait for it at the end, and look at what it says."""
        ranks = self.ranks if self.ranks > 1 else 0
        with launched(ranks, str(self.job.folder), *self.words, program=program) as launcher:
            yield launcher
            self.code = self._ended(launcher)

    def _ended(self, launcher: subprocess.Popen) -> int | None:
        try:
            words = launcher.communicate(timeout=PATIENCE)[0]
        except subprocess.TimeoutExpired:
            self.problems.append("hangs")
            return None
        self.said.append(words)
        return launcher.returncode

    def victim(self, launcher: subprocess.Popen) -> int:
        """The process that it happens to, once so many images are done."""
        ranks = ranks_of(launcher, self.ranks) if self.ranks > 1 else [launcher.pid]
        wait_for(self.job, self.run.case["after"], launcher)
        return ranks[self.run.case["victim"]] if ranks else launcher.pid

    def finish(self) -> None:
        """Let everything that failed wait again, run to the end, and compare the images."""
        with contextlib.redirect_stdout(io.StringIO()):
            if main(["batch", "retry", str(self.job.folder)]) != 0:
                self.problems.append("batch retry failed")
        with self.started():
            pass
        if self.code != 0:
            self.problems.append(f"the last run ended with {self.code}: {self.said[-1][-2000:]}")
        counts = {"pending": 0, "running": 0, "done": COUNT, "failed": 0}
        if self.job.counts() != counts:
            self.problems.append(f"in the end {self.job.counts()}")
        if damaged(self.job):
            self.problems.append(f"damaged in the end: {damaged(self.job)}")
        if _checksums(self.job) != undisturbed(self.run.case["layout"]):
            self.problems.append("other images than those of an undisturbed job")
        names = sorted(path.name for path in (self.job.folder / "images").iterdir())
        if names != [f"{index:06d}.png" for index in range(COUNT)]:
            self.problems.append(f"files in images: {names}")


def carry_out(run: Run) -> tuple[str, list[str]]:
    """Carry a job out; return what became of it in a word, and what does not hold."""
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(run, Path(folder))
        ended = FAULTS[run.fault](trial)
        trial.finish()
        if trial.problems:
            trial.problems += [words[-3000:] for words in trial.said]
        return ended, trial.problems


@functools.cache
def undisturbed(layout: str) -> list[str]:
    """Checksums of the images of a job that nothing happened to."""
    run = Run(0, 0, "job", JOB_LAYOUTS[layout][0], "none", {"layout": layout, "after": 0, "victim": 0})
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(run, Path(folder))
        with trial.started():
            pass
        return _checksums(trial.job)


def _none(trial: Trial) -> str:
    return "ran"


def _hurt(trial: Trial, hurt: Callable[[int], object]) -> str:
    with trial.started() as launcher:
        hurt(trial.victim(launcher))
    return f"ended with {trial.code}"


def _killed_rank(trial: Trial) -> str:
    return _hurt(trial, kill)


def _killed_launcher(trial: Trial) -> str:
    with trial.started() as launcher:
        trial.victim(launcher)
        kill(launcher.pid)
    return f"ended with {trial.code}"


def _asked_to_stop(trial: Trial) -> str:
    with trial.started() as launcher:
        trial.victim(launcher)
        launcher.send_signal(signal.SIGTERM)
    return f"ended with {trial.code}"


def _paused_rank(trial: Trial) -> str:
    def pause(process: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGSTOP)
            time.sleep(3)
            os.kill(process, signal.SIGCONT)

    return _hurt(trial, pause)


def _mark(trial: Trial) -> Path:
    """Return where a fault that comes once leaves its mark."""
    return trial.job.folder.with_suffix(".broken")


def _with_fault(trial: Trial, **fault: object) -> str:
    words = json.dumps(fault | {"once": str(_mark(trial))})
    with mock.patch.dict(os.environ, {"CAMPAIGN_FAULT": words}), trial.started("tests.campaigning.faulty"):
        pass
    return f"ended with {trial.code}"


def _exception(trial: Trial) -> str:
    """One rank raises: nobody waits for it, and its words are the reason of what failed."""
    after = STEPS * trial.run.case["after"] + 2
    ended = _with_fault(trial, kind="exception", rank=trial.run.case["victim"], after=after)
    if not _mark(trial).exists():
        return "the fault did not come"  # the other replica took so many items that this one was not called so often
    reasons = [item.error for item in trial.job.items() if item.error]
    if not any(WORDS in reason for reason in [*reasons, *trial.said]):
        trial.problems.append(f"the reason is lost: {reasons}")
    return ended


def _nan(trial: Trial) -> str:
    """One image becomes NaN on all ranks: it alone fails."""
    ended = _with_fault(trial, kind="nan", rank=None, after=STEPS * min(trial.run.case["after"], 1) + 2)
    failed = [item.error for item in trial.job.items() if item.state == "failed"]
    replicas = 2 if trial.run.case["layout"] == "dp2" else 1
    if len(failed) not in (1, replicas) or not all(failed):
        trial.problems.append(f"failed items: {failed}")
    return ended


def _full_disk(trial: Trial) -> str:
    """No file can grow: it ends with a line that says so."""
    ended = _with_fault(trial, kind="full disk", bytes=1024)
    trial.problems += _not_one_line(trial)
    return ended


def _cut_database(trial: Trial) -> str:
    """Half of the database is gone: refused in one line; with the whole one it goes on."""
    path = trial.job.folder / "job.sqlite"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with trial.started():
        pass
    trial.problems += _not_one_line(trial)
    for rest in trial.job.folder.glob("job.sqlite-*"):
        rest.unlink()
    path.write_bytes(whole)
    return f"ended with {trial.code}"


def _cut_image(trial: Trial) -> str:
    """Half of an image is gone behind the end: found, and made again."""
    with trial.started():
        pass
    path = trial.job.folder / "images" / "000002.png"
    path.write_bytes(path.read_bytes()[:100])
    if damaged(trial.job) != [2]:
        trial.problems.append(f"damaged: {damaged(trial.job)}")
    return f"ended with {trial.code}"


FAULTS: dict[str, Callable[[Trial], str]] = {
    "none": _none,
    "killed rank": _killed_rank,
    "killed launcher": _killed_launcher,
    "asked to stop": _asked_to_stop,
    "paused rank": _paused_rank,
    "exception": _exception,
    "nan": _nan,
    "full disk": _full_disk,
    "cut database": _cut_database,
    "cut image": _cut_image,
}


def _submitted(folder: Path) -> Store:
    with contextlib.redirect_stdout(io.StringIO()):
        return submit(folder / "job", COUNT, *SMALL)


def _checksums(job: Store) -> list[str]:
    return [item.checksum for item in job.items()]


def _not_one_line(trial: Trial) -> list[str]:
    if trial.code in (0, None):
        return [f"expected an error, ended with {trial.code}"]
    ours = trial.said[-1]
    return ["a traceback of ours"] if "fastcache_xdit/" in ours and "Traceback" in ours else []
