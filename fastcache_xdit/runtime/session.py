"""The transformer's own forward: where requests begin, steps tick, and ledgers are compared."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from fastcache_xdit.clock import Clock, Patch
from fastcache_xdit.models.spec import ModelSpec, Streams
from fastcache_xdit.runtime.driver import Driver
from fastcache_xdit.runtime.record import Record

logger = logging.getLogger(__name__)


class Session:
    """Ties one driver to the calls of one transformer.

    Args:
        spec: of the model.
        driver: runs its blocks.
        sigmas: gives the noise levels of the announced request's steps; None in a user's own loop, where the timestep's
            value tells steps and requests apart.
        current_patch: gives the PipeFusion patch of the current call, None for the full sequence.
    """

    def __init__(
        self,
        spec: ModelSpec,
        driver: Driver,
        sigmas: Callable[[], list[float]] | None,
        current_patch: Callable[[], Patch | None],
    ) -> None:
        self.spec = spec
        self.driver = driver
        self.sigmas = sigmas
        self.current_patch = current_patch
        self.ledgers_agree: bool | None = None
        self._announced = False
        self._concluded = False
        self._warned = False
        self._aside = False

    @property
    def clock(self) -> Clock:
        """The driver's clock."""
        return self.driver.clock

    @property
    def record(self) -> Record:
        """The driver's record."""
        return self.driver.record

    def announce(self) -> None:
        """Note that the scheduler was set up: the next call is the first of a request."""
        self._announced = True

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Let calls inside pass as if there were no cache; they are no steps."""
        self._aside = True
        try:
            yield
        finally:
            self._aside = False

    def wrapped(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Return the forward that replaces the transformer's own."""
        signature = inspect.signature(original)

        @functools.wraps(original)
        @torch.compiler.disable(recursive=False)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._aside:
                return original(*args, **kwargs)
            arguments = _named(signature, args, kwargs)
            timestep = None if self.sigmas else float(torch.as_tensor(arguments["timestep"]).flatten()[0])
            self._begin(timestep)
            if self._outside(arguments, timestep):
                self.record.counters.bypassed_calls += 1
                return original(*args, **kwargs)
            if self.driver.partial:
                self.driver.partial.look(arguments["hidden_states"])
            with self._step(timestep):
                return original(*args, **kwargs)

        return forward

    def rebase(self, entered: Streams) -> None:
        """Count what the current patch's computed step added from these states on."""
        patch = self.current_patch()
        self.driver.rebase(entered, patch.number if patch else None)

    def skip_elsewhere(self, step: int) -> None:
        """Write down a skipped step of the current patch that another pipeline stage takes alone."""
        with self.clock.at(step), self.clock.tick(self.current_patch()) as tick:
            self.driver.skip_elsewhere(tick)

    def conclude(self) -> None:
        """End a request in whose last steps this pipeline stage may have had no part: compare ledgers once."""
        if not self._concluded:
            self._confirm()

    def _confirm(self) -> None:
        self.record.consensus.confirm(self.record.ledger.stamp, "the end of the request")
        self._concluded = self.ledgers_agree = True

    def _begin(self, timestep: float | None) -> None:
        starts = self._announced if timestep is None else self.clock.starts_request(timestep)
        if starts:
            self._announced = self._concluded = False
            sigmas = self.sigmas() if self.sigmas else []
            self.driver.begin(sigmas)
            self.record.ledger.begin_request()
            self.clock.begin_request(len(sigmas) if self.sigmas else None)
            self.record.counters.requests += 1

    def _outside(self, arguments: Mapping[str, Any], timestep: float | None) -> bool:
        """Whether this call has no place in the request's sequence of steps, and so is computed in full."""
        if any(arguments.get(name) is not None for name in self.spec.bypass):
            return True
        extra = self.clock.repeats(timestep) if timestep is not None else self.clock.finished(self.current_patch())
        if extra and not self._warned:
            self._warned = True
            logger.warning(
                "the transformer is called outside the steps that are known; such calls are computed in full. Where a "
                "branch of guidance takes a call of its own, name it: with handle.branch('uncond'): ...; where "
                "pipe.scheduler was replaced after the cache was enabled, enable it anew"
            )
        return extra

    @contextmanager
    def _step(self, timestep: float | None) -> Iterator[None]:
        patch = self.current_patch()
        try:
            with self.clock.tick(patch, timestep) as tick:
                yield
        except BaseException:
            self.driver.reset()  # references of half a step must not be used by the next one
            raise
        self.record.counters.transformer_calls += 1
        if tick.steps_left == 0 and (patch is None or patch.is_last):
            self._confirm()


def _named(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """A call's arguments by name, those under ** included."""
    arguments = dict(signature.bind(*args, **kwargs).arguments)
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            arguments.update(arguments.pop(parameter.name, {}))
    return arguments
