"""Extrapolated keys and values: weighted sums of those of earlier full steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from fastcache_xdit.approx.fitted import Fitted, SolutionCache
from fastcache_xdit.approx.moments import Halves, Moments

FORECAST_FORM = "history"
SEGMENT, STREAM = "attention", "keys_values"  # names of their moments in a calibration


class KeysValues(NamedTuple):
    """Moments of all projections to keys and values.

    Each projection is one channel of `halves`, over all channels of its output, and so has one weight for each earlier
    step. Weights for each channel would gain 0.3 to 1.5 dB, but need moments hundreds of times as large.

    Attributes:
        layers: names of the projections.
        halves: their moments [L, 2T+1, 2T+1]; entry states and bias are empty.
    """

    layers: tuple[str, ...]
    halves: Halves


class KeysValuesForecast:
    """Extrapolates keys and values, with weights that are solved once for each pattern of steps.

    Args:
        calibrated: names and moments of the projections.
        solutions: solutions of earlier caches.
    """

    def __init__(self, calibrated: KeysValues, solutions: SolutionCache | None = None) -> None:
        self._number = {layer: number for number, layer in enumerate(calibrated.layers)}
        self._fitted = Fitted(FORECAST_FORM, {STREAM: calibrated.halves}, solutions)
        self._weights: dict[tuple[tuple[float, ...], int, tuple[int, ...]], list[list[float]]] = {}
        self.references = self._fitted.references

    def begin(self, sigmas: Sequence[float]) -> None:
        """Begin a request whose steps have these noise levels."""
        self._fitted.begin(sigmas)

    def knows(self, layer: str) -> bool:
        """Return whether the calibration has moments of this projection."""
        return layer in self._number

    def rows(self, layer: str, step: int, stored: Sequence[tuple[int, torch.Tensor]]) -> torch.Tensor:
        """Estimate the rows [B, N, D] of a projection at a step from (step, rows) of full steps, newest first."""
        weights = self.weights(layer, step, tuple(computed for computed, _ in stored))
        total = weights[0] * stored[0][1].float()
        for weight, (_, rows) in zip(weights[1:], stored[1:], strict=True):
            total.add_(rows, alpha=weight)
        return total.to(stored[0][1].dtype)

    def weights(self, layer: str, step: int, computed: tuple[int, ...]) -> list[float]:
        """Return the weights for a step of a projection's rows at the `computed` steps, newest first."""
        key = (self._fitted.sigmas, step, computed)
        if key not in self._weights:
            self._weights[key] = self._fitted.coefficients(STREAM, step, computed)[:, : len(computed)].tolist()
        return self._weights[key][self._number[layer]]


def add_to(
    by_stream: dict[str, Moments], recorded: Mapping[str, Sequence[torch.Tensor]], sigmas: Sequence[float]
) -> None:
    """Add recorded rows to the moments of all projections.

    Args:
        by_stream: the moments, under `STREAM`; created if they are not there.
        recorded: for each projection, its rows [n, D] by step.
        sigmas: noise level of each step.
    """
    moments = by_stream.setdefault(STREAM, Moments.empty(sigmas, len(recorded)))
    for number, rows in enumerate(recorded.values()):
        flat = torch.stack([step_rows.flatten() for step_rows in rows]).double()
        moments.gram[number, : len(rows), : len(rows)] += flat @ flat.T
