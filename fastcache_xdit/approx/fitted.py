"""Calibrated stand-ins: their coefficients are solved when a request first needs them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from fastcache_xdit.approx.coherence import NO_COHERENCE, Coherence
from fastcache_xdit.approx.fit import STRENGTHS, Places, directions, error_made, fit
from fastcache_xdit.approx.forms import FORMS
from fastcache_xdit.approx.linear import Past, Reference
from fastcache_xdit.approx.moments import Halves

MOST_SOLVED = 512  # sets of coefficients of one form and segment that are kept: a test chooses ever new masks


class Refitted(NamedTuple):
    """The key of refitted coefficients: one skipped step of one mask, fitted on the trajectory of that mask.

    Its `str` is part of the stamps in files of refits, so names must stay.

    Attributes:
        segment: key of the segment.
        form: name of the form.
        sigmas: noise levels of the request.
        stream: name of the stream.
        step: the skipped step.
        known: the computed steps that the stand-in uses, newest first.
    """

    segment: str
    form: str
    sigmas: tuple[float, ...]
    stream: str
    step: int
    known: tuple[int, ...]


def weighted_sum(
    weights: Sequence[torch.Tensor | None], entered: torch.Tensor, references: Sequence[Reference]
) -> torch.Tensor:
    """Add up Z = [R1..RK, H, H1..HK, 1] with weights [D] (None: 0), to the dtype of `entered` H [B, N, D]."""
    residuals = [reference.residual for reference in references]
    states = [*residuals, entered, *(reference.entered for reference in references)]
    total = weights[-1]
    for weight, state in zip(weights[:-1], states, strict=True):
        if weight is not None and state is not None:
            total = weight * state if total is None else torch.addcmul(total, weight, state)
    return torch.zeros_like(entered) if total is None else total.to(entered.dtype)


@dataclass
class SolutionCache:
    """The solutions for one form of one segment; they depend on the calibration alone and are shared between caches.

    Attributes:
        by_stream: the noise levels of the newest schedule that something was solved for, and the moments at these.
        coefficients: [D, 2K+2] float64, by noise levels, stream, step, and the computed steps before it.
        missed: for each stream, the accumulated error [D, 2T+1] up to the newest step, behind the key of that step.
        weights: as `coefficients`, also by device and whether the stage follows another.
    """

    by_stream: dict[str, tuple[tuple[float, ...], Halves]] = field(default_factory=dict)
    coefficients: dict[tuple, torch.Tensor] = field(default_factory=dict)
    missed: dict[str, tuple[tuple, torch.Tensor]] = field(default_factory=dict)
    weights: dict[tuple, list[torch.Tensor | None]] = field(default_factory=dict)

    def keep(self, key: tuple, coefficients: torch.Tensor) -> None:
        """Keep coefficients; with too many, all older ones and their weights are forgotten, to be solved again."""
        if len(self.coefficients) >= MOST_SOLVED:
            self.coefficients.clear()
            self.weights.clear()
        self.coefficients[key] = coefficients

    def release(self) -> None:
        """Forget what solving needs, and keep what was solved."""
        self.by_stream.clear()
        self.missed.clear()

    def bytes_held(self, calibrated: Iterable[Halves]) -> int:
        """Return the bytes of what is kept beside the calibrated moments themselves."""
        own = {id(part.gram) for halves in calibrated for part in halves}
        grams = [part.gram for _, halves in self.by_stream.values() for part in halves if id(part.gram) not in own]
        weights = [weight for some in self.weights.values() for weight in some if weight is not None]
        kept = [*grams, *self.coefficients.values(), *(error for _, error in self.missed.values()), *weights]
        return sum(tensor.numel() * tensor.element_size() for tensor in kept)


class Fitted:
    """A `StandIn` of one segment with closed-form fits from a calibration, solved once for each pattern of steps.

    Args:
        name: name of the form.
        moments: moments by stream.
        solutions: solutions of earlier caches.
        refits: coefficients [D, 2K+2] that replace solutions; those of other segments are ignored.
        segment: key of the segment.
        coherence: how errors add up, by growing reach; empty to fit every step by itself.
        follows: whether the blocks belong to a PipeFusion stage after the first. The weights are those of the segment
            that all stages form together, and the residuals of the stages add up to its residual. So only the first
            stage adds the terms of the entry states and the constant, and together the stages return what one process
            would, except for rounding.
    """

    def __init__(
        self,
        name: str,
        moments: Mapping[str, Halves],
        solutions: SolutionCache | None = None,
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
        self._solutions = solutions or SolutionCache()
        self.begin(next(iter(moments.values())).training.sigmas)

    def begin(self, sigmas: Sequence[float]) -> None:
        """Begin a request whose steps have these noise levels."""
        self.sigmas = tuple(sigmas)

    def release(self) -> None:
        """Forget the moments at the noise levels of the last request, and keep what was solved."""
        self._solutions.release()

    def bytes_held(self) -> int:
        """Return the bytes of what is kept beside the calibration."""
        return self._solutions.bytes_held(self._calibrated.values())

    def residual(self, stream: str, entered: torch.Tensor, past: Past) -> torch.Tensor:
        """Return sum_k r_k R_k + h H + sum_k h_k H_k + b, with weights [D], summed in at least float32."""
        used = past.references[: self.references]
        computed = past.computed if self._coherence else past.computed[: self.references]
        return weighted_sum(self._weights_for(stream, past.step, computed, entered.device), entered, used)

    def coefficients(self, stream: str, step: int, computed: tuple[int, ...]) -> torch.Tensor:
        """Return the weights [D, 2K+2] float64 of one step, given the computed steps before it, newest first."""
        key = (self.sigmas, stream, step, computed)
        if key not in self._solutions.coefficients:
            used = computed[: self.references]
            refit = self._refits.get(Refitted(self.segment, self.name, self.sigmas, stream, step, used))
            coefficients = self._solve(stream, step, computed) if refit is None else refit.double()
            self._solutions.keep(key, coefficients)
            return coefficients
        return self._solutions.coefficients[key]

    def _solve(self, stream: str, step: int, computed: tuple[int, ...]) -> torch.Tensor:
        place = Places.one(step, computed[: self.references])
        carried = self._carried(stream, step, computed)
        carried = None if carried is None else carried[None]
        floor = self._coherence_at(stream, step, computed).floor
        strengths = [strength for strength in STRENGTHS if strength >= floor]
        return fit(self.form, *self._halves(stream), place, strengths, carried).coefficients[0]

    def _coherence_at(self, stream: str, step: int, computed: tuple[int, ...]) -> Coherence:
        positions = self._halves(stream).training.positions
        distance = float(positions[step] - positions[computed[:2][-1]])
        in_reach = (coherence for coherence in self._coherence if distance < coherence.reach + 1e-6)
        return next(in_reach, NO_COHERENCE)

    def directions(self, stream: str, step: int, computed: tuple[int, ...]) -> torch.Tensor:
        """Return the `fit.directions` [D, F, 2K+2] of this step's coefficients."""
        place = Places.one(step, computed[: self.references])
        training, held_out = self._halves(stream)
        return directions(self.form, training.plus(held_out), place, self.coefficients(stream, step, computed))

    def _halves(self, stream: str) -> Halves:
        solved = self._solutions.by_stream.get(stream)
        if solved is None or solved[0] != self.sigmas:
            solved = self._solutions.by_stream[stream] = self.sigmas, self._calibrated[stream].at(self.sigmas)
        return solved[1]

    def _carried(self, stream: str, step: int, computed: tuple[int, ...]) -> torch.Tensor | None:
        """Return the error of the skipped steps before this one, faded to this step; None if there is none."""
        last = max(set(range(computed[-1], step)) - set(computed), default=None)
        length = self._coherence_at(stream, step, computed).length
        if last is None or not length:
            return None
        fading = math.exp((self.sigmas[step] - self.sigmas[last]) / length)
        return fading * self._missed(stream, last, tuple(earlier for earlier in computed if earlier < last))

    def _missed(self, stream: str, step: int, computed: tuple[int, ...]) -> torch.Tensor:
        """Return the accumulated and faded error [D, 2T+1] of all skipped steps up to this one."""
        key = (self.sigmas, step, computed)
        if self._solutions.missed.get(stream, (None,))[0] != key:
            place = Places.one(step, computed[: self.references])
            error = error_made(self.coefficients(stream, step, computed), len(self.sigmas), place)
            carried = self._carried(stream, step, computed)
            self._solutions.missed[stream] = key, error if carried is None else error + carried
        return self._solutions.missed[stream][1]

    def _weights_for(
        self, stream: str, step: int, computed: tuple[int, ...], device: torch.device
    ) -> list[torch.Tensor | None]:
        """Return a [D] float32 weight for each of R1..RK, H, H1..HK, 1; None if the form does not use it."""
        key = (self.sigmas, stream, step, computed, device, self._follows)
        if key not in self._solutions.weights:
            coefficients = self.coefficients(stream, step, computed).float()
            used = coefficients.any(dim=0)
            if self._follows:
                used[len(used) // 2 - 1 :] = False
            columns = coefficients.to(device).unbind(-1)
            self._solutions.weights[key] = [
                column.contiguous() if is_used else None for column, is_used in zip(columns, used.tolist(), strict=True)
            ]
        return self._solutions.weights[key]
