"""Predictions of the clean picture, in which outputs are extrapolated where a scheduler adds fresh noise at each step.

Such noise is a part of what the model's next output shows, and nothing before tells of it. The clean picture that an
output stands for has none of it.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch


class CleanView(NamedTuple):
    """How the clean picture follows from the output of one step and the latents that the scheduler has there.

    Attributes:
        latents: weight of the latents.
        output: weight of the output; 0 where it says nothing.
    """

    latents: float
    output: float

    def of(self, output: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """Return the clean picture, float32, that an output stands for."""
        return self.latents * latents.float() + self.output * output.float()

    def output_for(self, clean: torch.Tensor, latents: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Return the output that stands for a clean picture, in the dtype of `like`; that one where none does."""
        return ((clean - self.latents * latents.float()) / self.output).to(like.dtype) if self.output else like


def clean_views(scheduler: Any) -> tuple[CleanView, ...]:
    """Return the view of each of a scheduler's timesteps; none where its outputs are not understood.

    Latents are alpha clean + sigma noise. Its own `add_noise` or `scale_noise` tells the two.
    """
    scheduler = copy.deepcopy(scheduler)
    scheduler._begin_index = scheduler._step_index = None  # with these set, each timestep would get the noise of one
    kind = getattr(scheduler.config, "prediction_type", "flow_prediction")
    if kind not in _VIEWS or hasattr(scheduler, "precondition_outputs"):
        return ()
    alphas, sigmas = _noised(scheduler, 1.0, 0.0), _noised(scheduler, 0.0, 1.0)
    return tuple(_VIEWS[kind](*pair) for pair in zip(alphas, sigmas, strict=True))


def _noised(scheduler: Any, clean: float, noise: float) -> list[float]:
    timesteps = scheduler.timesteps
    of_clean, of_noise = (torch.full((len(timesteps), 1), value, device=timesteps.device) for value in (clean, noise))
    if hasattr(scheduler, "add_noise"):
        noised = scheduler.add_noise(of_clean, of_noise, timesteps)
    else:
        noised = scheduler.scale_noise(of_clean, timesteps, of_noise)
    return noised.flatten().tolist()


def _of_noise(alpha: float, sigma: float) -> CleanView:
    return CleanView(1 / alpha, -sigma / alpha)


def _of_velocity(alpha: float, sigma: float) -> CleanView:
    square = alpha**2 + sigma**2  # 1 where the variance is kept
    return CleanView(alpha / square, -sigma / square**0.5)


_VIEWS = {
    "epsilon": _of_noise,
    "v_prediction": _of_velocity,
    "sample": lambda alpha, sigma: CleanView(0.0, 1.0),
    "flow_prediction": lambda alpha, sigma: CleanView(1.0, -sigma),
}
