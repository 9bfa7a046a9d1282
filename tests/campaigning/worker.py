"""Worker: ranks that wait for cases of the campaign in a folder, run them, and say what does not hold.

A case lies in NUMBER.json; each rank answers in NUMBER.RANK.pt with an `Answer`.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from fastcache_xdit import FastCacheConfig, fastcache
from fastcache_xdit.errors import UsageError
from fastcache_xdit.host.find import host_of
from tests.campaigning.answer import Answer
from tests.campaigning.faults import FAULTS, other_config
from tests.parallel.cached import Answer as Cached
from tests.parallel.cached import asked, relative, uncached
from tests.parallel.ranks import layout
from tests.parallel.trace import differing, names

CLOSE = 1e-3  # relative; rounding in another layout is far below it, another decision above


class Case:
    """One pipeline in one layout, and what must hold of the cache on it; `requests` are two different ones."""

    def __init__(self, pipe: Any, family: str, config: dict[str, Any], requests: list[dict[str, Any]]) -> None:
        self.pipe, self.family, self.config = pipe, family, config
        self.first, self.second = requests
        self.problems: list[str] = []
        # positions are computed anew, with other rounding, from the second size on: on the stages that embed the
        # latents in xDiT's own loops, and on the last one where it runs skipped steps alone
        uncached(pipe, family, **self.second)
        with fastcache(pipe, FastCacheConfig(**_unlearnt(config))) as handle:
            asked(handle, pipe, family, **self.second)
        self.plain = uncached(pipe, family, **self.first)
        self.learns = config.get("learn", 0) > 0

    def check(self, fault: str) -> Cached:
        """Run all checks, the fault between them; return the first request as it is alone."""
        before = names(self.pipe)
        self.same("at threshold 0", self.cached(_nothing_skipped(self.config)), self.plain)
        alone = self.cached(self.config)
        if alone.latents is not None and not alone.latents.isfinite().all():
            self.problems.append("latents are not finite")
        if fault == "other config":
            self.problems += other_config(self.pipe, self.config)
        self.in_a_row(alone, fault)
        self.problems += [f"left behind by disable: {name}" for name in differing(before, self.pipe)]
        self.same("uncached, in the end", uncached(self.pipe, self.family, **self.first), self.plain)
        return alone

    def in_a_row(self, alone: Cached, fault: str) -> None:
        """Run the other request, the fault, and the first request twice, with one handle."""
        with fastcache(self.pipe, FastCacheConfig(**self.config)) as handle:
            asked(handle, self.pipe, self.family, **self.second)
            self.problems += FAULTS[fault](handle, self.pipe, self.family, self.second, self.config)
            held = []
            for _ in range(2):
                answer = asked(handle, self.pipe, self.family, **self.first)
                held.append(handle.report().bytes_held)
                if answer.agreed is False:
                    self.problems.append("ledgers differ between ranks")
                if not self.learns:
                    self.same("behind another request", answer, alone)
            if held[0] != held[1] and not self.learns:
                self.problems.append(f"held {held[0]} bytes, and {held[1]} behind the same request")

    def near_one_process(self, alone: Cached) -> None:
        """Compare a plan or a schedule, whose decisions no rounding can change, with one process."""
        with layout(self.family) as pipe, fastcache(pipe, FastCacheConfig(**self.config)) as handle:
            whole = asked(handle, pipe, self.family, **self.first)
        if alone.latents is not None and relative(alone.latents, whole.latents) > CLOSE:
            self.problems.append(f"differs from one process by {relative(alone.latents, whole.latents):.1e}")

    def cached(self, config: dict[str, Any]) -> Cached:
        with fastcache(self.pipe, FastCacheConfig(**config)) as handle:
            return asked(handle, self.pipe, self.family, **self.first)

    def same(self, place: str, answer: Cached, expected: Cached) -> None:
        """Note where latents differ by a bit, or decisions where there are any to compare."""
        if (answer.latents is None) != (expected.latents is None):
            self.problems.append(f"{place}: latents on another rank")
        elif answer.latents is not None and not torch.equal(answer.latents, expected.latents):
            self.problems.append(f"{place}: latents differ by {relative(answer.latents, expected.latents):.1e}")
        if expected.ledger and answer.ledger != expected.ledger:
            self.problems.append(f"{place}: decisions differ")


def main(folder: Path) -> None:
    """Answer case after case until the file `end` is there."""
    faulthandler.register(signal.SIGUSR1)  # asked for where a rank hangs
    rank, number = int(os.environ["RANK"]), 0
    while not (folder / "end").exists():
        path = folder / f"{number}.json"
        if not path.exists():
            time.sleep(0.02)
            continue
        os.environ["FASTCACHE_HOME"] = str(folder / f"home{number}")
        partial = folder / f"{number}.{rank}.part"
        torch.save(_answered(json.loads(path.read_text())), partial)
        partial.rename(folder / f"{number}.{rank}.pt")
        number += 1


def _answered(case: dict[str, Any]) -> Answer:
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        return _case(**case)._replace(memory=memory)
    except UsageError as error:
        return Answer([], refused=str(error), memory=memory)
    except Exception:
        return Answer([traceback.format_exc()], memory=memory)


def _case(family: str, degrees: dict, config: dict, requests: list[dict], fault: str) -> Answer:
    if "schedule" in config:  # JSON made texts of its numbers
        config = {**config, "schedule": {int(steps): mask for steps, mask in config["schedule"].items()}}
    with layout(family, **degrees) as pipe:
        case = Case(pipe, family, config, requests)
        alone = case.check(fault)
        group = host_of(pipe).topology.agreeing_ranks(FastCacheConfig(**config).cfg_agreement)
    if degrees and "pipefusion_parallel_degree" not in degrees and config.get("test") != "paper" and not case.learns:
        case.near_one_process(alone)
    choices = str([entry.choice for entry in alone.ledger])
    return Answer(case.problems, "", group, choices, alone.share)


def _unlearnt(config: dict[str, Any]) -> dict[str, Any]:
    return {**config, "learn": 0} if "learn" in config else config


def _nothing_skipped(config: dict[str, Any]) -> dict[str, Any]:
    """The same options, but none that lets a step be skipped."""
    if config.get("test") == "paper":
        return {**config, "error_budget": 0, "tokens": None}
    if "schedule" in config:
        # for each number of steps: a mask that is stretched computes no more steps than it has
        return {**config, "schedule": {steps: "1" * steps for steps in range(1, 21)}}
    return {"budget": 1, "learn": 0}


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(Path(sys.argv[1]))
