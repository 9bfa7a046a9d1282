"""A calibrated stand-in: solves its coefficients for the steps that a request brings up, and applies them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from fastcache_xdit.approx.fit import FREE, Fits, Floor, Places, fit
from fastcache_xdit.approx.forms import FORMS
from fastcache_xdit.approx.linear import Reference
from fastcache_xdit.approx.moments import Moments


class Refitted(NamedTuple):
    """One skipped step of one mask, whose stand-in was fitted on the trajectory that the mask itself leads to."""

    segment: str
    form: str
    levels: tuple[float, ...]
    stream: str
    step: int
    known: tuple[int, ...]


class Halves(NamedTuple):
    """Moments of the requests that fits are solved from, and of those that judge them."""

    training: Moments
    held_out: Moments

    def at(self, levels: Sequence[float]) -> Halves:
        """Both for another schedule."""
        return Halves(self.training.at(levels), self.held_out.at(levels))


@dataclass
class Solved:
    """What was solved for one form of one segment; outlives a cache, since it depends on the calibration alone.

    Attributes:
        by_schedule: moments at the noise levels of each schedule that came up, by these and the stream.
        weights: by schedule, stream, step, its references and device.
    """

    by_schedule: dict[tuple[tuple[float, ...], str], Halves] = field(default_factory=dict)
    weights: dict[tuple, list[torch.Tensor | None]] = field(default_factory=dict)


class Fitted:
    """`StandIn` of one segment, by closed-form fits from its calibration; solved once per pattern of steps.

    Args:
        name: of the form.
        moments: of each stream.
        solved: what other caches have solved already.
        refits: coefficients [D, 2K+2] that take the place of a solution; those of other segments are not looked at.
        segment: its key.
        floor: the least ridge.
    """

    def __init__(
        self,
        name: str,
        moments: Mapping[str, Halves],
        solved: Solved | None = None,
        refits: Mapping[Refitted, torch.Tensor] | None = None,
        segment: str = "",
        floor: Floor = FREE,
    ) -> None:
        self.name, self.segment = name, segment
        self.form = form = FORMS[name]
        self.references = max(1, form.references)
        self.entered_kept = form.changes
        self._calibrated = dict(moments)
        self._refits = refits or {}
        self._floor = floor
        self._solved = solved or Solved()
        self.begin(next(iter(moments.values())).training.levels)

    def begin(self, levels: Sequence[float]) -> None:
        """A request begins whose steps have these noise levels."""
        self.levels = tuple(levels)

    def fits(self, stream: str, places: Places) -> Fits:
        """The fits of a stream at these places of the current request's schedule."""
        key = (self.levels, stream)
        if key not in self._solved.by_schedule:
            self._solved.by_schedule[key] = self._calibrated[stream].at(self.levels)
        return fit(self.form, *self._solved.by_schedule[key], places, floor=self._floor)

    def residual(self, stream: str, entered: torch.Tensor, references: Sequence[Reference], step: int) -> torch.Tensor:
        """See `StandIn`: sum_k r_k R_k + h H + sum_k h_k H_k + b, each weight [D]; added up in at least float32."""
        used = references[: self.references]
        weights = self._weights_for(stream, step, tuple(reference.step for reference in used), entered.device)
        states = [each.residual for each in used] + [entered] + [each.entered for each in used]
        total = weights[-1]
        for weight, state in zip(weights[:-1], states, strict=True):
            if weight is not None and state is not None:
                total = weight * state if total is None else torch.addcmul(total, weight, state)
        assert total is not None
        return total.to(entered.dtype)

    def _weights_for(
        self, stream: str, step: int, known: tuple[int, ...], device: torch.device
    ) -> list[torch.Tensor | None]:
        """One [D] float32 tensor for each of R1..RK, H, H1..HK, 1; None where the form does not use it."""
        key = (self.levels, stream, step, known, device)
        if key not in self._solved.weights:
            coefficients = self._refits.get(Refitted(self.segment, self.name, self.levels, stream, step, known))
            if coefficients is None:
                coefficients = self.fits(stream, Places.one(step, known)).coefficients[0]
            columns = coefficients.float().to(device).unbind(-1)
            self._solved.weights[key] = [column.contiguous() if column.any() else None for column in columns]
        return self._solved.weights[key]
