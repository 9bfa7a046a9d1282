"""The handle of an enabled cache."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.errors import UsageError
from fastcache_xdit.goal import GOALS
from fastcache_xdit.learning.learner import Learner
from fastcache_xdit.runtime.handover import Watch
from fastcache_xdit.runtime.output import OutputDriver
from fastcache_xdit.runtime.report import Outcome, Report
from fastcache_xdit.runtime.session import Session
from fastcache_xdit.undo import Undo


class Handle:
    """An enabled cache; `disable` restores every object that it changed.

    Once it is off, a handle knows what was counted and learnt, and no longer holds the model. `begin`,
    `branch`, `paused` and `reset` then do nothing, and what needs a cache raises UsageError.
    """

    def __init__(
        self,
        session: Session,
        undo: Undo,
        fixes: Sequence[str],
        keys_values_bytes: Callable[[], int],
        learner: Learner | None = None,
    ) -> None:
        self._running: Session | None = session
        self._undo = undo
        self._fixes = tuple(fixes)
        self._keys_values_bytes = keys_values_bytes
        self._learner = learner
        self._outcome: Outcome | None = None

    @property
    def _session(self) -> Session:
        if self._running is None:
            raise UsageError("this cache is off", "enable FastCache anew")
        return self._running

    def disable(self) -> None:
        """Restore every changed object, free the cached tensors and let go of the model; a second call does nothing.

        Raises:
            RestoreError: something else replaced what the cache had replaced. All else is restored, and once that
                other patch was undone, another call restores the rest.
        """
        if self._running:
            self._running.driver.release()
            self._outcome = Outcome(self.report(), self.learnt, self.promise, self.seconds_learning)
            self._running = self._learner = None
            self._keys_values_bytes = _nothing
        self._undo.close()

    def begin(self) -> None:
        """Begin a request with the next call of this thread, in a loop of your own; what was kept is then forgotten.

        Such a loop needs it where nothing else tells that the last request is over: it may stop short of its steps, and
        the transformer takes no timestep.
        """
        if self._running:
            self._running.announce()

    def reset(self) -> None:
        """Forget cached states and counts; the next step is computed."""
        if self._running:
            self._running.driver.reset()
            self._running.record.counters.clear()

    @property
    def learnt(self) -> Calibration | None:
        """What was learnt of the model, or found in the user's folder; None until then, and where nothing is learnt."""
        if self._outcome:
            return self._outcome.learnt
        return self._learner.learnt if self._learner else None

    @property
    def recorded(self) -> int:
        """Number of requests that are recorded, to be learnt from; 0 once they were learnt from."""
        return self._learner.count if self._learner else 0

    def learn(self) -> None:
        """Learn from the requests that are recorded, without waiting for more. Raises UsageError where none is."""
        if not self._learner or not self.recorded:
            raise UsageError("nothing is recorded to learn from", "generate with test: plan and a learn above 0 first")
        self._learner.learn()

    @property
    def is_recording(self) -> bool:
        """Whether the next request is computed in full and recorded, to learn from."""
        return self._learner is not None and self._learner.is_recording

    @property
    def seconds_learning(self) -> float:
        """Wall time in seconds, inside of requests, that went into learning from those that were recorded."""
        if self._outcome:
            return self._outcome.seconds_learning
        return self._learner.seconds if self._learner else 0.0

    def branch(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Assign the calls inside a with block to CFG branch `name`; for loops with one call for each branch."""
        return self._running.clock.in_branch(name) if self._running else contextlib.nullcontext()

    @contextlib.contextmanager
    def at(self, **goal: float) -> Iterator[None]:
        """Take another goal for the requests inside a with block, such as `handle.at(budget=0.3)`; no model is called.

        Raises:
            UsageError: not one goal out of `budget`, `speedup` and `psnr`, or one that is not possible, or blocks are
                skipped by other rules than a plan.
        """
        driver = self._session.driver
        is_goal = len(goal) == 1 and goal.keys() <= set(GOALS) and None not in goal.values()
        if not is_goal or not isinstance(driver, OutputDriver):
            raise UsageError(f"at takes one goal of a plan, not {goal or 'nothing'}", "give budget, speedup or psnr")
        with driver.pilot.at(FastCacheConfig.from_dict(dict(goal)).goal):
            yield

    @property
    def plan(self) -> str:
        """One line on what is used and what it promises; empty where nothing is planned."""
        return self._outcome.report.plan if self._outcome else _plan_of(self._session)

    @property
    def promise(self) -> float | None:
        """PSNR in dB that the plan promises for the steps that were learnt from; None where nothing is known."""
        if self._outcome:
            return self._outcome.promise
        driver = self._session.driver
        return driver.pilot.promise if isinstance(driver, OutputDriver) else None

    def paused(self) -> contextlib.AbstractContextManager[None]:
        """Make this thread's requests inside a with block without the cache or learning; xDiT's defects stay fixed."""
        return self._running.bypassed() if self._running else contextlib.nullcontext()

    @contextlib.contextmanager
    def watched(self, watch: Watch) -> Iterator[None]:
        """Show `watch` what the scheduler is given, and what it makes of it, at every step inside a with block.

        Args:
            watch: called with the position, the output, the latents before, and those behind the step.
        """
        handover = self._session.handover
        outer, handover.watch = handover.watch, watch
        try:
            yield
        finally:
            handover.watch = outer

    def focus(self, mask: Any) -> None:
        """Set the region that an edit may change; with `tokens.score: region`, partial steps compute its tokens alone.

        Args:
            mask: array, tensor or PIL image [H, W], nonzero inside the region; the aspect ratio of the image, any size.
        Raises:
            UsageError: `tokens.score` is not `region`.
        """
        import numpy as np
        import torch

        partial = self._session.driver.partial
        if partial is None or partial.options.score != "region":
            raise UsageError("there is no region to compute", "set tokens.score=region")
        array = np.asarray(mask)
        if array.ndim != 2 or array.size == 0 or array.dtype.kind not in "biuf":
            raise UsageError(f"a mask is numbers of shape [H, W], not {array.dtype} of shape {list(array.shape)}")
        partial.focus(torch.from_numpy(array.astype(np.float32)))

    def report(self) -> Report:
        """Return the counts and decisions of this rank, without communication."""
        if self._outcome:
            return self._outcome.report
        driver, record = self._session.driver, self._session.record
        bytes_held = driver.bytes_held() + self._keys_values_bytes()
        entries = tuple(record.ledger.entries)
        guarded = tuple(self._learner.guard.likeness) if self._learner else ()
        agree = self._session.ledgers_agree
        remarks = tuple(record.remarks.lines)
        return Report(record.counters, entries, agree, bytes_held, self._fixes, self.plan, guarded, remarks)


def _plan_of(session: Session) -> str:
    return session.driver.pilot.describe() if isinstance(session.driver, OutputDriver) else ""


def _nothing() -> int:
    return 0
