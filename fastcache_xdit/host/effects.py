"""By how much an error of an output at each step shows in the final latents, asked of the scheduler itself."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from fastcache_xdit.host.clean import CleanView, clean_views

SMALL = 1e-3  # of an output: no scheduler clips what it makes of it
SOME = 0.25  # of a clean picture, likewise: it must show beside the noise


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
    few values with a small output at one step each show all effects in one run without a model. Where the scheduler
    draws noise, these are effects of predictions of the clean picture, see `views`. A scheduler that is not linear or
    cannot be run alone is taken for Euler's, in which an effect is the difference of noise levels.

    Args:
        scheduler: diffusers' or xDiT's; None in a user's own loop, which is taken for Euler's too.
        sigmas: returns the noise levels of the announced request.

    Attributes:
        views: by step of the last request that was measured, if its scheduler draws noise; else none.
    """

    def __init__(self, scheduler: Any, sigmas: Any) -> None:
        self._scheduler = getattr(scheduler, "module", scheduler)
        self._sigmas = sigmas
        self._measured: dict[tuple[float, ...], tuple[Effects, tuple[CleanView, ...]]] = {}
        self.views: tuple[CleanView, ...] = ()

    def __call__(self) -> Effects:
        """Return the effects of each step; must be called between `set_timesteps` and the first step."""
        sigmas = tuple(self._sigmas())
        if sigmas not in self._measured:
            self._measured[sigmas] = self._measure(sigmas)
        effects, self.views = self._measured[sigmas]
        return effects

    def at(self, sigmas: Sequence[float]) -> Effects:
        """Return the effects of an earlier request with these noise levels."""
        return self._measured[tuple(sigmas)][0]

    def view(self, step: int) -> CleanView | None:
        """Return in what outputs of a step are stood in for; None for the outputs themselves."""
        return self.views[step] if step < len(self.views) else None

    def _measure(self, sigmas: tuple[float, ...]) -> tuple[Effects, tuple[CleanView, ...]]:
        views: tuple[CleanView, ...] = ()
        try:
            if _draws_noise(self._scheduler, len(sigmas)):
                views = clean_views(self._scheduler)[-len(sigmas) :]
            size = SOME if views else SMALL
            once, twice = (_effects(self._scheduler, len(sigmas), each, views) for each in (size, 2 * size))
        except Exception:  # whatever a scheduler needs that it does not have here
            return euler(sigmas), views
        if not any(once.final) or not _same(once.final, twice.final):
            return euler(sigmas), views
        return _with_what_follows(once, sigmas) if views else once, views


def euler(sigmas: Sequence[float]) -> Effects:
    """Return the differences of noise levels, the last one to 0."""
    steps = tuple(after - before for before, after in zip(sigmas, [*sigmas[1:], 0.0], strict=True))
    return Effects(steps, steps)


def _same(effects: Sequence[float], others: Sequence[float]) -> bool:
    """Return whether the effects are finite and equal up to rounding."""
    largest = max(map(abs, effects))
    pairs = zip(effects, others, strict=True)
    return math.isfinite(largest) and all(abs(one - other) <= 1e-4 * largest for one, other in pairs)


def _with_what_follows(effects: Effects, sigmas: Sequence[float]) -> Effects:
    """Add to the effects of clean pictures, nearly all of the last one, what errors do to the model's next outputs."""
    final = (own + abs(change) for own, change in zip(effects.final, euler(sigmas).final, strict=True))
    return effects._replace(final=tuple(final))


def _draws_noise(scheduler: Any, steps: int) -> bool:
    return bool(_run(scheduler, steps, 0.0, ())[-1].any())


def _effects(scheduler: Any, steps: int, size: float, views: Sequence[CleanView]) -> Effects:
    """Run a scheduler on `steps` values, each with an output of `size` at one step; return the effects per unit."""
    moved = (_run(scheduler, steps, size, views) - _run(scheduler, steps, 0.0, views)).double() / size
    return Effects(tuple(moved[-1].tolist()), tuple(moved.diagonal().tolist()))


@torch.no_grad()
def _run(scheduler: Any, steps: int, size: float, views: Sequence[CleanView]) -> torch.Tensor:
    """Return the latents behind each step [T, T], with an output of `size` at one step each, always the same noise."""
    scheduler = copy.deepcopy(scheduler)
    timesteps = scheduler.timesteps[-steps:]  # requests that begin late leave out the first ones
    sample, following = torch.zeros(1, 1, 1, steps, dtype=torch.float32), []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for step, timestep in enumerate(timesteps[:steps]):
            output = torch.zeros_like(sample)
            output[..., step] = size
            output = views[step].output_for(output, sample, output) if views else output
            sample = scheduler.step(output, timestep, sample, return_dict=False)[0]
            following.append(sample.flatten())
    return torch.stack(following)
