"""By how much an error of an output at each step shows in the final latents, asked of the scheduler itself."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

SMALL = 1e-3  # of an output: no scheduler clips what it makes of it


class Effects(NamedTuple):
    """What an output of 1 at each step adds to the latents.

    Attributes:
        final: to the final latents.
        next: to the latents right behind the step.
    """

    final: tuple[float, ...]
    next: tuple[float, ...]


class SchedulerEffects:
    """The effects of an announced request, measured on a copy of its scheduler.

    Schedulers treat each value of the latents alike and are linear in outputs and latents, where they do not clip. So a
    few values with a small output at one step each show all effects in one run without a model. A scheduler that is not
    linear, draws noise, or cannot be run alone is taken for Euler's, in which an effect is the difference of noise
    levels.

    Args:
        scheduler: diffusers' or xDiT's; None in a user's own loop, which is taken for Euler's too.
        sigmas: returns the noise levels of the announced request.
    """

    def __init__(self, scheduler: Any, sigmas: Any) -> None:
        self._scheduler = getattr(scheduler, "module", scheduler)
        self._sigmas = sigmas
        self._measured: dict[tuple[float, ...], Effects] = {}

    def __call__(self) -> Effects:
        """Return the effects of each step; must be called between `set_timesteps` and the first step."""
        sigmas = tuple(self._sigmas())
        if sigmas not in self._measured:
            self._measured[sigmas] = self._measure(sigmas)
        return self._measured[sigmas]

    def at(self, sigmas: Sequence[float]) -> Effects:
        """Return the effects of an earlier request with these noise levels."""
        return self._measured[tuple(sigmas)]

    def _measure(self, sigmas: tuple[float, ...]) -> Effects:
        try:
            once, twice = (_run(copy.deepcopy(self._scheduler), len(sigmas), size) for size in (SMALL, 2 * SMALL))
        except Exception:  # whatever a scheduler needs that it does not have here
            return euler(sigmas)
        return once if any(once.final) and _same(once.final, twice.final) else euler(sigmas)


def euler(sigmas: Sequence[float]) -> Effects:
    """Return the differences of noise levels, the last one to 0."""
    steps = tuple(after - before for before, after in zip(sigmas, [*sigmas[1:], 0.0], strict=True))
    return Effects(steps, steps)


def _same(effects: Sequence[float], others: Sequence[float]) -> bool:
    """Return whether the effects are finite and equal up to rounding."""
    largest = max(map(abs, effects))
    pairs = zip(effects, others, strict=True)
    return math.isfinite(largest) and all(abs(one - other) <= 1e-4 * largest for one, other in pairs)


@torch.no_grad()
def _run(scheduler: Any, steps: int, size: float) -> Effects:
    """Run a scheduler on `steps` values, each with an output of `size` at one step; return the effects per unit."""
    timesteps = scheduler.timesteps[-steps:]  # requests that begin late leave out the first ones
    sample, following = torch.zeros(1, 1, 1, steps, dtype=torch.float32), []
    for step, timestep in enumerate(timesteps[:steps]):
        output = torch.zeros_like(sample)
        output[..., step] = size
        # the class method: a listening session has replaced that of the instance
        sample = type(scheduler).step(scheduler, output, timestep, sample, return_dict=False)[0]
        following.append(float(sample[..., step]) / size)
    return Effects(tuple((sample.flatten().double() / size).tolist()), tuple(following))
