"""What stands in for the output of a whole denoiser: weighted sums of its outputs at computed steps (method.md 2).

The output is the one that the scheduler is given, guidance included. A calibration of it has one segment, in which R
is this output, and H the latents that it was made of; where these were recorded, the current ones are weighed as well.
Errors of skipped steps add up in the latents by known factors, those of the scheduler, so that each skipped step can
make good what the ones before it missed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch

from fastcache_xdit.approx.fit import STRENGTHS, Places, error_made, fit
from fastcache_xdit.approx.fitted import Refitted
from fastcache_xdit.approx.forms import FORMS
from fastcache_xdit.approx.moments import Halves, Moments

SEGMENT, STREAM = "output", "hidden_states"  # names of the moments in a calibration
OUTPUTS, WITH_LATENTS = "history", "history+entry"  # the forms
REFERENCES = FORMS[WITH_LATENTS].references
MOST_SOLVED = 4096  # sets of weights that are kept; masks that a check changes are ever new ones


class Weights(NamedTuple):
    """Weights for each channel, or one for all (C = 1).

    Attributes:
        outputs: [C, K] float32, of the last K outputs, newest first.
        latents: [C, 1] float32, of the latents that the scheduler advances; None where they are not weighed.
    """

    outputs: torch.Tensor
    latents: torch.Tensor | None = None


@dataclass
class OutputForecast:
    """The weights of skipped steps at one sequence of noise levels, solved when they are first asked for.

    Attributes:
        halves: moments at these noise levels.
        effects: for each step, by how much an error of its output shows in the final latents.
        refits: weights that replace solutions.
        doubt: how far what is known may be off, see `doubted`: above 0 where it is known of other models alone.
        made_good: the part of what earlier skipped steps are known to have missed that a step makes good.
    """

    halves: Halves
    effects: Sequence[float]
    refits: Mapping[Refitted, torch.Tensor] = field(default_factory=dict)
    doubt: float = 0.0
    made_good: float = 1.0
    _solved: dict[tuple[str, int, tuple[int, ...]], torch.Tensor] = field(default_factory=dict, init=False, repr=False)

    @property
    def sigmas(self) -> tuple[float, ...]:
        """The noise levels."""
        return self.halves.training.sigmas

    def weights(self, step: int, computed: tuple[int, ...], sees_latents: bool) -> Weights:
        """Return the weights of a skipped step, given all computed steps before it, newest first.

        Args:
            step: the step.
            computed: the computed steps.
            sees_latents: whether the latents can be weighed; a loop without scheduler does not show them.
        """
        known, form = computed[:REFERENCES], self._form if sees_latents else OUTPUTS
        weights = self.refits.get(key_of(self.sigmas, step, known, form))
        if weights is None:
            weights = weighed(self._coefficients(form, step, computed), known, form)
        outputs, latents = weights.float().split([len(known), weights.shape[1] - len(known)], dim=1)
        return Weights(outputs, latents if latents.numel() else None)

    @cached_property
    def _form(self) -> str:
        return form_for(self.halves)

    def _coefficients(self, form: str, step: int, computed: tuple[int, ...]) -> torch.Tensor:
        """Return the weights [C, 2K+2] of Z = [R1..RK, H, H1..HK, 1]."""
        if (form, step, computed) not in self._solved:
            carried = self._carried(form, step, computed)
            place = Places.one(step, computed[:REFERENCES])
            halves = Halves(*(doubted(part, step, computed[:REFERENCES], self.doubt) for part in self.halves))
            solved = fit(FORMS[form], *halves, place, STRENGTHS, None if carried is None else carried[None])
            if len(self._solved) >= MOST_SOLVED:
                self._solved.clear()
            self._solved[form, step, computed] = solved.coefficients[0]
        return self._solved[form, step, computed]

    def _carried(self, form: str, step: int, computed: tuple[int, ...]) -> torch.Tensor | None:
        """Return the error [C, 2T+1] of all skipped steps before this one, in units of this step's output."""
        skipped = [earlier for earlier in range(computed[-1], step) if earlier not in computed]
        if not skipped or not self.effects[step]:
            return None
        missed = [self.effects[earlier] * self._missed(form, earlier, computed) for earlier in skipped]
        return self.made_good * torch.stack(missed).sum(dim=0) / self.effects[step]

    def _missed(self, form: str, step: int, computed: tuple[int, ...]) -> torch.Tensor:
        before = tuple(other for other in computed if other < step)
        place = Places.one(step, before[:REFERENCES])
        return error_made(self._coefficients(form, step, before), len(self.sigmas), place)


def doubted(moments: Moments, step: int, known: Sequence[int], doubt: float) -> Moments:
    """Return moments in which each known output has an error of its own, so that large weights cost what they amplify.

    Another model's outputs are smooth in another way. To first order all are the same; what is left of an output grows
    with the square of its distance in noise level from the skipped step, and its variance with the fourth power:
    doubt * distance^4 * energy.
    """
    if not doubt:
        return moments
    gram = moments.gram.clone()
    for other in known:
        gram[:, other, other] *= 1 + doubt * (moments.sigmas[other] - moments.sigmas[step]) ** 4
    return Moments(moments.sigmas, gram, moments.positions)


def form_for(halves: Halves) -> str:
    """Return the form that moments have something to say about: with latents, where these were recorded."""
    moments, steps = halves.training, halves.training.steps
    return WITH_LATENTS if moments.gram[:, steps : 2 * steps, steps : 2 * steps].any() else OUTPUTS


def weighed(coefficients: torch.Tensor, known: Sequence[int], form: str) -> torch.Tensor:
    """Cut coefficients [C, 2K+2] of Z to those that a form has weights for: [C, K], or with latents [C, K+1]."""
    return coefficients[:, : len(known) + (form == WITH_LATENTS)]


def key_of(sigmas: Sequence[float], step: int, known: Sequence[int], form: str) -> Refitted:
    """Return the key of refitted weights in a calibration."""
    return Refitted(SEGMENT, form, tuple(sigmas), STREAM, step, tuple(known))


def by_channel(weights: torch.Tensor, output: torch.Tensor) -> list[torch.Tensor]:
    """Return each of K weights [C, K] so that it multiplies the channels of an output: [B, N, C], or [B, C, ...]."""
    shape = (-1,) if output.ndim == 3 else (-1, *[1] * (output.ndim - 2))
    return [weight.view(shape) for weight in weights.to(output.device).unbind(dim=1)]


def combined(
    weights: Weights,
    outputs: Sequence[torch.Tensor],
    latents: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return the weighted sum of outputs, newest first, and latents, summed in float32, in `dtype` (None: theirs)."""
    first, *others = by_channel(weights.outputs, outputs[0])
    terms = list(zip(others, outputs[1:], strict=False))
    if weights.latents is not None:
        assert latents is not None
        terms += zip(by_channel(weights.latents, latents), [latents], strict=True)
    total = first * outputs[0]
    for factor, values in terms:
        total = torch.addcmul(total, factor, values.to(total.dtype))
    return total.to(dtype or outputs[0].dtype)
