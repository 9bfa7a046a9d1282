"""The scheduler's side of a session: what its steps are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from fastcache_xdit.clock import Tick
from fastcache_xdit.runtime.branches import UnnamedCalls
from fastcache_xdit.runtime.driver import Driver
from fastcache_xdit.runtime.output import OutputDriver

# Is shown, each time a scheduler advances: the position, the output and the latents that it was given, and the latents
# that it returned.
Watch = Callable[[Tick, torch.Tensor, torch.Tensor, torch.Tensor], None]


class OutputView(Protocol):
    """What stands for an output, such as the clean picture that it shows."""

    def of(self, output: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """Return what stands for an output at these latents."""

    def output_for(self, clean: torch.Tensor, latents: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Return the output that it stands for."""


class Handover:
    """Gives a scheduler the outputs of a driver's calls, or what stands in for them.

    Attributes:
        watch: is shown what the scheduler is given and what it makes of it.
        view: returns in what outputs are stood in for at a step: the clean picture, or None for the outputs themselves.
        unnamed: counts the calls of a step that nobody names.
        has_advanced: whether the scheduler has, in the running request.
    """

    def __init__(self) -> None:
        self.watch: Watch | None = None
        self.view: Callable[[int], OutputView | None] = lambda step: None
        self.unnamed = UnnamedCalls()
        self.has_advanced = False

    def begin(self) -> None:
        """Begin a request."""
        self.has_advanced = False
        self.unnamed.begin()

    def advance(
        self,
        driver: Driver | OutputDriver,
        tick: Tick,
        output: torch.Tensor,
        latents: Any,
        step: Callable[[torch.Tensor], Any],
    ) -> Any:
        """Let the scheduler advance its latents by `step`, with the output of the last call or what stands for it."""
        self.has_advanced = True
        view = self.view(tick.step)
        shown = view.of(output, latents) if view else output
        taken = driver.handed_over(shown, tick, latents)
        if taken is not shown:
            output = view.output_for(taken, latents, output) if view else taken
        result = step(output)
        if self.watch:
            self.watch(tick, taken, latents, result[0])
        return result
