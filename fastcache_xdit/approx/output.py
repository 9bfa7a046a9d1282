"""What stands in for the output of a whole denoiser: weighted sums of its outputs at computed steps (method.md 2).

The output is the one that the scheduler is given, guidance included. A calibration of it has one segment, in which R
is this output. Errors of skipped steps add up in the latents by known factors, those of the scheduler, so that each
skipped step can make good what the ones before it missed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from fastcache_xdit.approx.fit import STRENGTHS, Places, error_made, fit
from fastcache_xdit.approx.fitted import Refitted
from fastcache_xdit.approx.forms import FORMS
from fastcache_xdit.approx.moments import Halves

SEGMENT, STREAM = "output", "hidden_states"  # names of the moments in a calibration
NAME = "history"
REFERENCES = FORMS[NAME].references
MOST_SOLVED = 4096  # sets of weights that are kept; masks that a check changes are ever new ones
Weights = torch.Tensor  # [C, K]: for each channel (one for all: C = 1), weights of the last K outputs, newest first


@dataclass
class OutputForecast:
    """The weights of skipped steps at one sequence of noise levels, solved when they are first asked for.

    Attributes:
        halves: moments at these noise levels.
        effects: for each step, by how much an error of its output shows in the final latents.
        refits: weights that replace solutions.
    """

    halves: Halves
    effects: Sequence[float]
    refits: Mapping[Refitted, torch.Tensor] = field(default_factory=dict)
    _solved: dict[tuple[int, tuple[int, ...]], torch.Tensor] = field(default_factory=dict, init=False, repr=False)

    @property
    def sigmas(self) -> tuple[float, ...]:
        """The noise levels."""
        return self.halves.training.sigmas

    def weights(self, step: int, computed: tuple[int, ...]) -> Weights:
        """Return the weights [C, K] float32 of a skipped step, given all computed steps before it, newest first."""
        known = computed[:REFERENCES]
        refit = self.refits.get(key_of(self.sigmas, step, known))
        return (self._coefficients(step, computed)[:, : len(known)] if refit is None else refit).float()

    def _coefficients(self, step: int, computed: tuple[int, ...]) -> torch.Tensor:
        if (step, computed) not in self._solved:
            carried = self._carried(step, computed)
            place = Places.one(step, computed[:REFERENCES])
            solved = fit(FORMS[NAME], *self.halves, place, STRENGTHS, None if carried is None else carried[None])
            if len(self._solved) >= MOST_SOLVED:
                self._solved.clear()
            self._solved[step, computed] = solved.coefficients[0]
        return self._solved[step, computed]

    def _carried(self, step: int, computed: tuple[int, ...]) -> torch.Tensor | None:
        """Return the error [C, 2T+1] of all skipped steps before this one, in units of this step's output."""
        skipped = [earlier for earlier in range(computed[-1], step) if earlier not in computed]
        if not skipped or not self.effects[step]:
            return None
        errors = [self.effects[earlier] / self.effects[step] * self._missed(earlier, computed) for earlier in skipped]
        return torch.stack(errors).sum(dim=0)

    def _missed(self, step: int, computed: tuple[int, ...]) -> torch.Tensor:
        before = tuple(other for other in computed if other < step)
        return error_made(self._coefficients(step, before), len(self.sigmas), Places.one(step, before[:REFERENCES]))


def key_of(sigmas: Sequence[float], step: int, known: Sequence[int]) -> Refitted:
    """Return the key of refitted weights [C, K] in a calibration."""
    return Refitted(SEGMENT, NAME, tuple(sigmas), STREAM, step, tuple(known))


def by_channel(weights: Weights, output: torch.Tensor) -> list[torch.Tensor]:
    """Return each of K weights so that it multiplies the channels of an output: [B, N, C], or [B, C, ...]."""
    shape = (-1,) if output.ndim == 3 else (-1, *[1] * (output.ndim - 2))
    return [weight.view(shape) for weight in weights.to(output.device).unbind(dim=1)]


def combined(weights: Weights, outputs: Sequence[torch.Tensor], dtype: torch.dtype | None = None) -> torch.Tensor:
    """Return the weighted sum of outputs, newest first, summed in float32, in `dtype` (None: theirs)."""
    factors = by_channel(weights, outputs[0])
    total = factors[0] * outputs[0]
    for factor, output in zip(factors[1:], outputs[1:], strict=False):
        total = torch.addcmul(total, factor, output.to(total.dtype))
    return total.to(dtype or outputs[0].dtype)
