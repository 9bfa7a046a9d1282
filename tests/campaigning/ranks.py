"""Ranks that are kept for many runs of the campaign, and what their answers must have in common."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from tests.campaigning.answer import Answer
from tests.campaigning.draw import Run
from tests.parallel.launch import ask_where, children_of, end, environment, tails

PATIENCE = 240.0  # seconds for one run, on a machine that does other things as well
GROWTH = 400  # MiB that a rank may grow over all of its runs behind the first ones
SETTLED = 5  # runs after which sizes and families have been seen once


class Ranks:
    """A torchrun of `count` ranks that run one case after the other; started when needed, and anew after a fault."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.process: subprocess.Popen | None = None

    def run(self, run: Run) -> tuple[str, list[str]]:
        """Run one case; return what became of it in a word, and what does not hold."""
        if self.process is None:
            self.start()
        number, self.number = self.number, self.number + 1
        partial = self.folder / "next"
        partial.write_text(json.dumps(run.case))
        partial.rename(self.folder / f"{number}.json")
        answers = [self.folder / f"{number}.{rank}.pt" for rank in range(self.count)]
        ended = self.wait_for(answers)
        if run.fault == "killed rank":
            return self.after_kill(ended)
        if ended != "answered":
            problems = [f"{ended}\n{self.stop()}"]
            return ended, problems
        return self.judge([torch.load(path, weights_only=False) for path in answers])

    def start(self) -> None:
        """Start the ranks."""
        self.place = tempfile.TemporaryDirectory()
        self.folder, self.number, self.sizes = Path(self.place.name), 0, []
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={self.count}"]
        logs = ["--log-dir", str(self.folder / "logs"), "--redirects", "3"]
        words = [*torchrun, *logs, "-m", "tests.campaigning.worker", str(self.folder)]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(words, env=environment(), start_new_session=True, **quiet)

    def wait_for(self, answers: list[Path]) -> str:
        """Return `answered`, `ended` where the ranks ended before, or `hangs`."""
        patience = time.monotonic() + PATIENCE
        while time.monotonic() < patience:
            if all(path.exists() for path in answers):
                return "answered"
            if self.process.poll() is not None:
                return "ended"
            time.sleep(0.02)
        return "hangs"

    def after_kill(self, ended: str) -> tuple[str, list[str]]:
        """The launcher must have ended, and its ranks with it."""
        ranks = children_of(self.process.pid)
        words = self.stop()
        if ended == "ended" and not ranks:
            return "ended", []
        return ended, [f"after a rank was killed: {ended}, {len(ranks)} ranks left\n{words}"]

    def judge(self, answers: list[Answer]) -> tuple[str, list[str]]:
        """Compare what ranks say."""
        problems = [f"rank {rank}: {text}" for rank, answer in enumerate(answers) for text in answer.problems]
        if any(problem.count("Traceback") for problem in problems):
            self.stop()  # what an error left behind is not the next run's affair
        for rank, answer in enumerate(answers):
            for other in answer.group:
                if answers[other].choices != answer.choices:
                    problems.append(f"ranks {rank} and {other} decided differently")
        refusals = {answer.refused for answer in answers}
        if len(refusals) > 1:
            problems.append(f"refused on some ranks only: {refusals}")
        if any("\n" in refusal for refusal in refusals):
            problems.append(f"a refusal of more than one line: {refusals}")
        problems += self.grown(max(answer.memory for answer in answers) // 1024)
        return ("refused" if refusals != {""} else "ran"), problems

    def grown(self, size: int) -> list[str]:
        """Note how large the ranks are in MiB, and say whether they grow from run to run."""
        self.sizes.append(size)
        growth = size - self.sizes[min(SETTLED, len(self.sizes) - 1)]
        if growth <= GROWTH:
            return []
        self.stop()
        return [f"a rank grew by {growth} MiB over {len(self.sizes)} runs: {self.sizes}"]

    def stop(self) -> str:
        """End the ranks; return the last words of each."""
        if self.process is None:
            return ""
        (self.folder / "end").touch()
        if self.process.poll() is None:
            ask_where(self.process)
        end(self.process)
        words = tails(self.folder)
        self.place.cleanup()
        self.process = None
        return words
