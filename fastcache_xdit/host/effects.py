"""By how much an error of an output at each step shows in the final latents, asked of the scheduler itself."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from fastcache_xdit.host.clean import CleanView, clean_views

SMALL = 1e-3  # of an output: no scheduler clips what it makes of it
SOME = 0.25  # of a clean picture, likewise: it must show beside the noise
MOST_SHOWN = 1.5  # of an error of a clean picture: up to 1 with most schedulers, 14 with KDPM2 ancestral


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
        arguments: returns further arguments of its steps, such as `eta`.

    Attributes:
        views: by step of the last request that was measured, if its scheduler draws noise; else none.
        amplifies: whether that scheduler draws noise and makes more of the error of an estimate than it was.
    """

    def __init__(
        self,
        scheduler: Any,
        sigmas: Callable[[], Sequence[float]],
        arguments: Callable[[], Mapping[str, float]] = dict,
    ) -> None:
        self._scheduler = getattr(scheduler, "module", scheduler)
        self._sigmas, self._arguments = sigmas, arguments
        self._measured: dict[Any, tuple[Effects, tuple[CleanView, ...]]] = {}
        self._latest: dict[tuple[float, ...], Effects] = {}
        self.views: tuple[CleanView, ...] = ()
        self.amplifies = False

    def __call__(self) -> Effects:
        """Return the effects of each step; must be called between `set_timesteps` and the end of the first step."""
        sigmas, arguments = tuple(self._sigmas()), self._arguments()
        key = sigmas, *arguments.items()
        if key not in self._measured:
            self._measured[key] = self._measure(sigmas, arguments)
        effects, self.views = self._measured[key]
        self._latest[sigmas], self.amplifies = effects, bool(self.views) and _amplifies(effects, sigmas)
        return effects

    def at(self, sigmas: Sequence[float]) -> Effects:
        """Return the effects of the last request with these noise levels."""
        return self._latest[tuple(sigmas)]

    def view(self, step: int) -> CleanView | None:
        """Return in what outputs of a step are stood in for; None for the outputs themselves."""
        return self.views[step] if step < len(self.views) else None

    def _measure(
        self, sigmas: tuple[float, ...], arguments: Mapping[str, float]
    ) -> tuple[Effects, tuple[CleanView, ...]]:
        views: tuple[CleanView, ...] = ()
        run = _Run(self._scheduler, len(sigmas), arguments)
        try:
            if run.draws_noise():
                views = clean_views(self._scheduler)[-len(sigmas) :]
            size = SOME if views else SMALL
            once, twice = (run.effects(each, views) for each in (size, 2 * size))
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


def _amplifies(effects: Effects, sigmas: Sequence[float]) -> bool:
    """Return whether latents that the model sees next show more of an error of a clean picture than the error was.

    The part of the latents that is picture, no noise, grows as the noise level falls.
    """
    levels = [*sigmas[1:], 0.0]
    return any(abs(own) * (1 - level) > MOST_SHOWN for own, level in zip(effects.next, levels, strict=True))


class _Run(NamedTuple):
    """A run without a model on as many values as there are steps, each with an output of some size at one step."""

    scheduler: Any
    steps: int
    arguments: Mapping[str, float]

    def draws_noise(self) -> bool:
        """Return whether the latents are anything without outputs."""
        return bool(self.latents(0.0, ())[-1].any())

    def effects(self, size: float, views: Sequence[CleanView]) -> Effects:
        """Return what outputs of a size add, per unit."""
        moved = (self.latents(size, views) - self.latents(0.0, views)).double() / size
        return Effects(tuple(moved[-1].tolist()), tuple(moved.diagonal().tolist()))

    @torch.no_grad()
    def latents(self, size: float, views: Sequence[CleanView]) -> torch.Tensor:
        """Return the latents behind each step [T, T], always with the same noise."""
        scheduler, steps = copy.deepcopy(self.scheduler), self.steps
        timesteps = scheduler.timesteps[-steps:]  # requests that begin late leave out the first ones
        sample, following = torch.zeros(1, 1, 1, steps, dtype=torch.float32), []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for step, timestep in enumerate(timesteps[:steps]):
                output = torch.zeros_like(sample)
                output[..., step] = size
                output = views[step].output_for(output, sample, output) if views else output
                sample = scheduler.step(output, timestep, sample, **self.arguments, return_dict=False)[0]
                following.append(sample.flatten())
        return torch.stack(following)
