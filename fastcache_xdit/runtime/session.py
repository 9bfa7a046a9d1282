"""Requests and steps of one transformer: its forward begins requests, advances the clock and compares ledgers."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from fastcache_xdit.clock import FUSED, Clock, Patch, Tick
from fastcache_xdit.models.spec import Streams, named, timestep_of
from fastcache_xdit.models.watch import signature_of
from fastcache_xdit.runtime.calls import Calls
from fastcache_xdit.runtime.driver import Driver
from fastcache_xdit.runtime.first_call import FirstCall
from fastcache_xdit.runtime.handover import Handover
from fastcache_xdit.runtime.memory import MemoryChoice
from fastcache_xdit.runtime.output import OutputDriver
from fastcache_xdit.runtime.record import Record
from fastcache_xdit.runtime.remarks import FOREIGN, OUTSIDE, THREADS, UNNAMED, UNSEEN, on_steps
from fastcache_xdit.runtime.turns import Turns
from fastcache_xdit.undo import Undo


class Session:
    """Connects a driver to the calls of one transformer.

    Args:
        bypass: arguments of the forward; a call that sets one is computed in full.
        driver: runs the calls.
        sigmas: returns the noise levels of the request; None in a user's own loop that does not give them.
        current_patch: returns the PipeFusion patch of the current call, None for the full sequence.
        announced: whether a scheduler announces requests; otherwise the value of the timestep separates steps and
            requests.

    Attributes:
        ledgers_agree: see `Report`.
        turns: keeps threads apart.
        memory: chooses the driver of each request, where memory is limited.
        handover: gives outputs to the scheduler.
        check: raises UsageError where the cache must not serve the request that begins.
        latest: the last call that was a step; None outside of requests.
    """

    def __init__(
        self,
        bypass: Sequence[str],
        driver: Driver | OutputDriver | FirstCall,
        sigmas: Callable[[], list[float]] | None,
        current_patch: Callable[[], Patch | None],
        announced: bool = True,
    ) -> None:
        self.bypass = bypass
        self.driver: Driver | OutputDriver | FirstCall = driver
        self.sigmas = sigmas
        self.current_patch = current_patch
        self.ledgers_agree: bool | None = None
        self.handover = Handover()
        self.memory: MemoryChoice | None = None
        self.check: Callable[[], None] = lambda: None
        self.turns = Turns()
        self._reads_timestep = not announced
        self._concluded = False
        self._calls = Calls()
        self._local = threading.local()
        self.latest: Tick | None = None

    @property
    def clock(self) -> Clock:
        """The clock of the driver."""
        return self.driver.clock

    @property
    def record(self) -> Record:
        """The record of the driver."""
        return self.driver.record

    @property
    def is_bypassed(self) -> bool:
        """Whether the calls of this thread run as if there were no cache."""
        return getattr(self._local, "is_bypassed", False)

    def announce(self) -> None:
        """Note that the scheduler was set up, so that the next call begins a request."""
        self.turns.announce()

    @contextmanager
    def bypassed(self) -> Iterator[None]:
        """Run this thread's calls inside the with block as if there were no cache; they do not count as steps."""
        outer, self._local.is_bypassed = self.is_bypassed, True
        try:
            yield
        finally:
            self._local.is_bypassed = outer

    def attach(self, transformer: nn.Module, undo: Undo) -> None:
        """Stand around the calls of a transformer, for as long as the undo log is open."""
        signature = signature_of(transformer)
        self._calls.timestep_name = timestep_of(signature)

        def call(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if self.is_bypassed:
                return original(*args, **kwargs)
            arguments = named(signature, args, kwargs)
            timestep = self._calls.timestep(self.clock.branch, arguments) if self._reads_timestep else None
            begin = functools.partial(self._begin, arguments, timestep)
            with self.turns.taken(begin) as is_mine, self._branch(arguments, is_mine):
                if self._is_outside(arguments, timestep, is_mine):
                    self.record.counters.bypassed_calls += 1
                    return original(*args, **kwargs)
                if self.driver.partial:
                    self.driver.partial.compare_halves(arguments["hidden_states"])
                with self._step(timestep) as tick:
                    output = self._drive(tick, functools.partial(original, *args, **kwargs))
                if not self.handover.unnamed.is_stepped:
                    self._calls.note(self.clock.branch, arguments, output)
                return output

        undo.wrap(transformer, "__call__", call)

    def _drive(self, tick: Tick, compute: functools.partial[Any]) -> Any:
        if isinstance(self.driver, FirstCall):
            self.driver = self.driver.driver(compute)
        return self.driver.call(tick, compute)

    def hand_over(self, output: torch.Tensor, latents: Any, advance: Callable[[torch.Tensor], Any]) -> Any:
        """Let the scheduler advance its latents by `advance`, with the last output or what stands in for it."""
        if self.is_bypassed or not self.turns.is_mine:
            return advance(output)
        self.handover.unnamed.advanced()
        if self.latest is None:
            return advance(output)
        assert not isinstance(self.driver, FirstCall)
        return self.handover.advance(self.driver, self.latest, output, latents, advance)

    @property
    def is_in_first_step(self) -> bool:
        """Whether the scheduler has not advanced in the running request."""
        is_begun = self.latest is not None and not self.is_bypassed and self.turns.is_mine
        return is_begun and not self.handover.has_advanced

    def plan_anew(self) -> None:
        """Plan the running request anew, whose first step has shown other noise levels, or noise that will be drawn."""
        assert self.sigmas
        sigmas = self.sigmas()
        self.driver.plan(sigmas)
        self.clock.num_steps = len(sigmas)

    def begin(self) -> None:
        """Begin the announced request before its first call."""
        self._begin({}, None)

    def rebase(self, entered: Streams) -> None:
        """Measure the residual of the current patch's newest computed step from `entered` on."""
        patch = self.current_patch()
        assert isinstance(self.driver, Driver)
        self.driver.rebase(entered, patch.number if patch else None)

    def record_remote_skip(self, step: int) -> None:
        """Record a skipped step of the current patch that another pipeline stage runs alone."""
        with self.clock.at(step), self.clock.tick(self.current_patch()) as tick:
            self.latest = tick
            assert not isinstance(self.driver, FirstCall)
            self.driver.record_remote_skip(tick)

    def conclude(self) -> None:
        """End a request whose last steps another pipeline stage may have run alone: compare the ledgers, once."""
        if not self._concluded:
            self._confirm()

    def end(self) -> None:
        """End the request of this thread, whether or not all its steps were taken; calls until the next are no steps.

        What was kept of a request that was given up is forgotten.
        """
        if self.turns.is_mine:
            self.latest = None
            if not self._concluded:
                self.driver.reset()
        self.turns.end()

    @contextmanager
    def serving(self) -> Iterator[None]:
        """End the request of a call of the pipeline with that call, and remark on a call that was none."""
        before = self.record.counters.requests
        try:
            yield
            if self.record.counters.requests == before and not self.is_bypassed:
                self.record.remarks.make(UNSEEN)
        finally:
            self.end()

    def _confirm(self) -> None:
        self.record.consensus.confirm(self.record.ledger.stamp, "the end of the request")
        self._concluded = self.ledgers_agree = True

    def _begin(self, arguments: Mapping[str, Any], timestep: float | None) -> None:
        if self._starts(arguments, timestep):
            self.check()
            self.turns.begin()
            self._concluded = False
            self.driver = self.memory.driver() if self.memory else self.driver
            self.latest = None
            self.handover.begin()
            self._calls.begin()
            sigmas = self.sigmas() if self.sigmas else []
            self.driver.begin(sigmas)
            self.record.ledger.begin_request()
            self.clock.begin_request(len(sigmas) if self.sigmas else None)
            self.record.counters.requests += 1
            for line in on_steps(self.record.config, len(sigmas)):
                self.record.remarks.make(line)

    def _starts(self, arguments: Mapping[str, Any], timestep: float | None) -> bool:
        """Return whether a call begins a request; in a loop without scheduler and timestep, its steps are counted."""
        if self.turns.is_announced or not self._reads_timestep:
            return self.turns.is_announced
        if timestep is not None:
            return self.clock.starts_request(timestep)
        is_over = self.clock.finished(None) and self._calls.has_moved(self.clock.branch, arguments)
        return self.clock.request == 0 or is_over

    def _branch(self, arguments: Mapping[str, Any], is_mine: bool) -> AbstractContextManager[None]:
        """Count a call that nobody names for a branch of its own, if it is a further one of its step."""
        if not is_mine or self._reads_timestep or self.clock.branch != FUSED or self.current_patch():
            return nullcontext()
        name = self.handover.unnamed.branch(lambda: self._calls.is_further(FUSED, arguments))
        return self.clock.in_branch(name) if name else nullcontext()

    def _is_outside(self, arguments: Mapping[str, Any], timestep: float | None, is_mine: bool) -> bool:
        """Return whether this call is none of the steps of the request; it is then computed in full."""
        if not is_mine:
            self.record.remarks.make(THREADS if self.turns.is_taken else FOREIGN)
            return True
        if any(arguments.get(name) is not None for name in self.bypass):
            return True
        if not self._reads_timestep:
            is_extra, remark = self.clock.finished(self.current_patch()), OUTSIDE
        elif timestep is not None:
            is_extra, remark = self.clock.repeats(timestep), UNNAMED
        else:
            is_extra, remark = not self._calls.has_moved(self.clock.branch, arguments), UNNAMED
        if is_extra:
            self.record.remarks.make(remark)
        return is_extra

    @contextmanager
    def _step(self, timestep: float | None) -> Iterator[Tick]:
        patch = self.current_patch()
        try:
            with self.clock.tick(patch, timestep) as tick:
                self.latest = tick
                yield tick
        except BaseException:
            self.driver.reset()  # the references of an interrupted step must not be used
            raise
        self.record.counters.transformer_calls += 1
        if tick.steps_left == 0 and (patch is None or patch.is_last):
            self._confirm()
