"""A calibrated stand-in: solves its coefficients for the steps that a request brings up, and applies them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from fastcache_xdit.approx.fit import STRENGTHS, Places, directions, error_made, fit
from fastcache_xdit.approx.forms import FORMS
from fastcache_xdit.approx.linear import Past, Reference
from fastcache_xdit.approx.moments import Moments


class Refitted(NamedTuple):
    """One skipped step of one mask, whose stand-in was fitted on the trajectory that the mask itself leads to."""

    segment: str
    form: str
    sigmas: tuple[float, ...]
    stream: str
    step: int
    known: tuple[int, ...]


class Coherence(NamedTuple):
    """How errors of one request add up, measured by calibration on final latents.

    Errors of neighbouring steps are much alike, so that what counts is less the error of each step than their sum: a
    stand-in aims to make good what the ones before it missed. Far from the computed steps that it knows, it does not
    see enough to do so.

    Attributes:
        reach: calibrated steps back to the second newest computed step, up to which this holds.
        length: noise levels over which an error fades to 1/e of itself; 0: every step for itself.
        floor: the least ridge. The moments alone ask for too little where neighbouring steps are much alike.
    """

    reach: float
    length: float
    floor: float


ALONE = Coherence(reach=math.inf, length=0.0, floor=0.0)


class Halves(NamedTuple):
    """Moments of the requests that fits are solved from, and of those that judge them."""

    training: Moments
    held_out: Moments

    def at(self, sigmas: Sequence[float]) -> Halves:
        """Both for another schedule."""
        return Halves(self.training.at(sigmas), self.held_out.at(sigmas))


def combined(
    weights: Sequence[torch.Tensor | None], entered: torch.Tensor, references: Sequence[Reference]
) -> torch.Tensor:
    """Add up Z = [R1..RK, H, H1..HK, 1], each weighed by [D] or left out, in the dtype of `entered` [B, N, D]."""
    states = [each.residual for each in references] + [entered] + [each.entered for each in references]
    total = weights[-1]
    for weight, state in zip(weights[:-1], states, strict=True):
        if weight is not None and state is not None:
            total = weight * state if total is None else torch.addcmul(total, weight, state)
    return torch.zeros_like(entered) if total is None else total.to(entered.dtype)


@dataclass
class Solved:
    """What was solved for one form of one segment; outlives a cache, since it depends on the calibration alone.

    Attributes:
        by_schedule: moments at the noise levels of each schedule that came up, by these and the stream.
        coefficients: [D, 2K+2] float64 by schedule, stream, step, and computed steps before.
        missed: of each stream the newest step's [D, 2T+1], what all skipped steps up to it missed, after its key.
        weights: as coefficients, and by device and whether the stage follows another.
    """

    by_schedule: dict[tuple[tuple[float, ...], str], Halves] = field(default_factory=dict)
    coefficients: dict[tuple, torch.Tensor] = field(default_factory=dict)
    missed: dict[str, tuple[tuple, torch.Tensor]] = field(default_factory=dict)
    weights: dict[tuple, list[torch.Tensor | None]] = field(default_factory=dict)


class Fitted:
    """`StandIn` of one segment, by closed-form fits from its calibration; solved once per pattern of steps.

    Args:
        name: of the form.
        moments: of each stream.
        solved: what other caches have solved already.
        refits: coefficients [D, 2K+2] that take the place of a solution; those of other segments are not looked at.
        segment: its key.
        coherence: how errors add up, by growing reach; none: every step for itself.
        follows: it serves the blocks of a PipeFusion stage after the first. Weights are those of the whole segment, and
            residuals of its parts add up to the segment's; so what entered and the constant count at the first alone,
            and the stages together give, but for rounding, what one process would.
    """

    def __init__(
        self,
        name: str,
        moments: Mapping[str, Halves],
        solved: Solved | None = None,
        refits: Mapping[Refitted, torch.Tensor] | None = None,
        segment: str = "",
        coherence: Sequence[Coherence] = (),
        follows: bool = False,
    ) -> None:
        self.name, self.segment = name, segment
        self.form = form = FORMS[name]
        self.references = max(1, form.references)
        self.entered_kept = 0 if follows else form.changes
        self._coherence = coherence
        self._follows = follows
        self._calibrated = dict(moments)
        self._refits = refits or {}
        self._solved = solved or Solved()
        self.begin(next(iter(moments.values())).training.sigmas)

    def begin(self, sigmas: Sequence[float]) -> None:
        """Begin a request whose steps have these noise levels."""
        self.sigmas = tuple(sigmas)

    def residual(self, stream: str, entered: torch.Tensor, past: Past) -> torch.Tensor:
        """Return sum_k r_k R_k + h H + sum_k h_k H_k + b, each weight [D], added up in at least float32."""
        used = past.references[: self.references]
        path = past.computed if self._coherence else past.computed[: self.references]
        return combined(self._weights_for(stream, past.step, path, entered.device), entered, used)

    def coefficients(self, stream: str, step: int, computed: tuple[int, ...]) -> torch.Tensor:
        """Return the weights [D, 2K+2] float64 of one step, given the computed steps before it, newest first."""
        key = (self.sigmas, stream, step, computed)
        if key not in self._solved.coefficients:
            known = computed[: self.references]
            refit = self._refits.get(Refitted(self.segment, self.name, self.sigmas, stream, step, known))
            solved = self._solve(stream, step, computed) if refit is None else refit.double()
            self._solved.coefficients[key] = solved
        return self._solved.coefficients[key]

    def _solve(self, stream: str, step: int, computed: tuple[int, ...]) -> torch.Tensor:
        place = Places.one(step, computed[: self.references])
        carried = self._carried(stream, step, computed)
        carried = carried if carried is None else carried[None]
        floor = self._coherence_at(stream, step, computed).floor
        strengths = [strength for strength in STRENGTHS if strength >= floor]
        return fit(self.form, *self._halves(stream), place, strengths, carried).coefficients[0]

    def _coherence_at(self, stream: str, step: int, computed: tuple[int, ...]) -> Coherence:
        ticks = self._halves(stream).training.ticks
        back = float(ticks[step] - ticks[computed[:2][-1]])
        return next((each for each in self._coherence if back < each.reach + 1e-6), ALONE)

    def directions(self, stream: str, step: int, computed: tuple[int, ...]) -> torch.Tensor:
        """Return `fit.directions` [D, F, 2K+2] at the coefficients of this step."""
        place = Places.one(step, computed[: self.references])
        training, held_out = self._halves(stream)
        return directions(self.form, training.plus(held_out), place, self.coefficients(stream, step, computed))

    def _halves(self, stream: str) -> Halves:
        key = (self.sigmas, stream)
        if key not in self._solved.by_schedule:
            self._solved.by_schedule[key] = self._calibrated[stream].at(self.sigmas)
        return self._solved.by_schedule[key]

    def _carried(self, stream: str, step: int, computed: tuple[int, ...]) -> torch.Tensor | None:
        """What is left at this step of all that the skipped steps before it missed; None where there is none."""
        last = max(set(range(computed[-1], step)) - set(computed), default=None)
        length = self._coherence_at(stream, step, computed).length
        if last is None or not length:
            return None
        fading = math.exp((self.sigmas[step] - self.sigmas[last]) / length)
        return fading * self._missed(stream, last, tuple(each for each in computed if each < last))

    def _missed(self, stream: str, step: int, computed: tuple[int, ...]) -> torch.Tensor:
        """[D, 2T+1]: what all skipped steps up to this one missed, faded."""
        key = (self.sigmas, step, computed)
        if self._solved.missed.get(stream, (None,))[0] != key:
            place = Places.one(step, computed[: self.references])
            own = error_made(self.coefficients(stream, step, computed), len(self.sigmas), place)
            carried = self._carried(stream, step, computed)
            self._solved.missed[stream] = key, own if carried is None else own + carried
        return self._solved.missed[stream][1]

    def _weights_for(
        self, stream: str, step: int, computed: tuple[int, ...], device: torch.device
    ) -> list[torch.Tensor | None]:
        """One [D] float32 tensor for each of R1..RK, H, H1..HK, 1; None where the form does not use it."""
        key = (self.sigmas, stream, step, computed, device, self._follows)
        if key not in self._solved.weights:
            solved = self.coefficients(stream, step, computed).float()
            used = solved.any(dim=0)
            if self._follows:
                used[len(used) // 2 - 1 :] = False
            columns = solved.to(device).unbind(-1)
            self._solved.weights[key] = [
                column.contiguous() if each else None for column, each in zip(columns, used.tolist(), strict=True)
            ]
        return self._solved.weights[key]
