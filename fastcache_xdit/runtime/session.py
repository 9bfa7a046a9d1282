"""The transformer's own forward: where requests begin, steps tick, and ledgers are compared."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from fastcache_xdit.clock import Clock
from fastcache_xdit.models.spec import ModelSpec, Streams
from fastcache_xdit.parallel.consensus import Consensus
from fastcache_xdit.parallel.ledger import Ledger
from fastcache_xdit.runtime.driver import Driver

logger = logging.getLogger(__name__)


class Session:
    """Ties one driver to the calls of one transformer.

    `sigmas` gives the noise levels of the announced request's steps, or is None in a user's own loop, where the
    timestep's value tells steps and requests apart. `patch` gives (number, rows, is_last) of the current PipeFusion
    patch, or None.
    """

    def __init__(
        self,
        spec: ModelSpec,
        driver: Driver,
        ledger: Ledger,
        consensus: Consensus,
        sigmas: Callable[[], list[float]] | None,
        patch: Callable[[], Any],
    ) -> None:
        self.spec = spec
        self.driver = driver
        self.ledger = ledger
        self.consensus = consensus
        self.sigmas = sigmas
        self.patch = patch
        self.ledgers_agree: bool | None = None
        self._announced = False
        self._concluded = False
        self._warned = False

    @property
    def clock(self) -> Clock:
        """The driver's clock."""
        return self.driver.clock

    def announce(self) -> None:
        """The scheduler was set up: the next call is the first of a request."""
        self._announced = True

    def wrapped(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """What takes the place of the transformer's forward."""
        signature = inspect.signature(original)

        @functools.wraps(original)
        @torch.compiler.disable(recursive=False)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if self.driver.looking:
                return original(*args, **kwargs)
            arguments = _named(signature, args, kwargs)
            timestep = None if self.sigmas else float(torch.as_tensor(arguments["timestep"]).flatten()[0])
            self._begin(timestep)
            if self._outside(arguments, timestep):
                self.driver.counters.bypassed_calls += 1
                return original(*args, **kwargs)
            if self.driver.partial:
                self.driver.partial.look(arguments["hidden_states"])
            with self._step(timestep):
                return original(*args, **kwargs)

        return forward

    def rebase(self, entered: Streams) -> None:
        """Take what the current patch's computed step added from these states on."""
        number, _, _ = self._place()
        self.driver.rebase(entered, number)

    def pass_over(self, step: int) -> None:
        """This pipeline stage has no part in a skipped step of the current patch."""
        number, rows, _ = self._place()
        with self.clock.at(step), self.clock.tick(number, rows) as tick:
            self.driver.pass_over(tick)

    def conclude(self) -> None:
        """The request is over, whose last steps this pipeline stage may have had no part in: compare ledgers once."""
        if not self._concluded:
            self._confirm()

    def _place(self) -> tuple[int | None, tuple[int, int] | None, bool]:
        """Number and rows of the current patch, None of the full sequence, and whether a step ends with it."""
        return self.patch() or (None, None, True)

    def _confirm(self) -> None:
        self.consensus.confirm(self.ledger.stamp, "the end of the request")
        self._concluded = self.ledgers_agree = True

    def _begin(self, timestep: float | None) -> None:
        starts = self._announced if timestep is None else self.clock.starts_request(timestep)
        if starts:
            self._announced = self._concluded = False
            sigmas = self.sigmas() if self.sigmas else []
            self.driver.begin(sigmas)
            self.ledger.begin_request()
            self.clock.begin_request(len(sigmas) if self.sigmas else None)
            self.driver.counters.requests += 1

    def _outside(self, arguments: Mapping[str, Any], timestep: float | None) -> bool:
        """Whether this call has no place in the request's sequence of steps, and so is computed in full."""
        if any(arguments.get(name) is not None for name in self.spec.bypass):
            return True
        extra = self.clock.repeats(timestep) if timestep is not None else self.clock.finished(self.patch())
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
        number, rows, is_last_patch = self._place()
        try:
            with self.clock.tick(number, rows, timestep) as tick:
                yield
        except BaseException:
            self.driver.reset()  # references of half a step must not be used by the next one
            raise
        self.driver.counters.transformer_calls += 1
        if tick.steps_left == 0 and is_last_patch:
            self._confirm()


def _named(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """A call's arguments by name, those under ** included."""
    arguments = dict(signature.bind(*args, **kwargs).arguments)
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            arguments.update(arguments.pop(parameter.name, {}))
    return arguments
