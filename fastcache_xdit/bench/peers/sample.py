"""One generation of all prompts, with a tape of what passed by on the way."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from fastcache_xdit.undo import Undo


class Tape:
    """Record latents as they enter the decoder, and the clean latents that each step predicts.

    Attributes:
        latents: [N, ...] float64 on the CPU; None until they were decoded.
        clean: one tensor for each step, in the scheduler's form.
    """

    def __init__(self, pipe: Any) -> None:
        self.latents: torch.Tensor | None = None
        self.clean: list[torch.Tensor] = []
        self._pipe = pipe

    @contextlib.contextmanager
    def running(self, on: bool) -> Iterator[Tape]:
        """Record for the length of a with block, or stay empty where `on` is False."""
        with Undo() as undo:
            if on:
                undo.set(self._pipe.vae, "decode", self._decoding(self._pipe.vae.decode))
                undo.set(self._pipe.scheduler, "step", self._stepping(self._pipe.scheduler.step))
            yield self

    def _decoding(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def decode(latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self.latents = latents.detach().double().cpu()
            return original(latents, *args, **kwargs)

        return decode

    def _stepping(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def step(output: torch.Tensor, timestep: Any, sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            # All shipped models learn flows, where sigma is the timestep over the number of training steps.
            sigma = float(timestep) / self._pipe.scheduler.config.num_train_timesteps
            self.clean.append((sample - sigma * output).detach())
            return original(output, timestep, sample, *args, **kwargs)

        return step


@dataclass
class Sample:
    """All prompts generated once, cached or not.

    Attributes:
        pictures: [N, 3, H, W] in 0..1.
        latents: [N, ...], None where none were taped.
        steps: the transformer's FLOPs in each step of the first batch, first to last, over all ranks.
        outside: how many of these lie outside the blocks, as many in each step as in an uncached one.
        tape: of the first batch.
    """

    pictures: torch.Tensor
    latents: torch.Tensor | None
    steps: list[int]
    outside: float
    tape: Tape
