"""Keys and values of static tokens, fitted as weighted sums of those of earlier whole steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from fastcache_xdit.approx.fitted import Fitted, Halves, Solved
from fastcache_xdit.approx.moments import Moments

FORM = "history"
SEGMENT, STREAM = "attention", "keys_values"  # names of the moments in a calibration


class KeysValues(NamedTuple):
    """Moments of every projection to keys or values; its output, all channels alike, counts as one channel of `halves`.

    One weight for each earlier step and projection: weights per channel give 0.3 to 1.5 dB more, for moments that are
    hundreds of times as large.
    """

    layers: tuple[str, ...]
    halves: Halves


class KeysValuesForecast:
    """Weights of earlier rows, solved once for each pattern of steps.

    Args:
        known: names of the projections, and their moments [L, 2T+1, 2T+1], entry states and bias left empty.
        solved: what other caches have solved already.
    """

    def __init__(self, known: KeysValues, solved: Solved | None = None) -> None:
        self._number = {layer: number for number, layer in enumerate(known.layers)}
        self._fitted = Fitted(FORM, {STREAM: known.halves}, solved)
        self._weights: dict[tuple[tuple[float, ...], int, tuple[int, ...]], list[list[float]]] = {}
        self.references = self._fitted.references

    def begin(self, sigmas: Sequence[float]) -> None:
        """Begin a request whose steps have these noise levels."""
        self._fitted.begin(sigmas)

    def knows(self, layer: str) -> bool:
        """Return whether there are moments of a projection."""
        return layer in self._number

    def rows(self, layer: str, step: int, known: Sequence[tuple[int, torch.Tensor]]) -> torch.Tensor:
        """Return the rows [B, N, D] of a projection at a step, from (step, rows) of whole steps, newest first."""
        weights = self.weights(layer, step, tuple(each for each, _ in known))
        total = weights[0] * known[0][1].float()
        for weight, (_, rows) in zip(weights[1:], known[1:], strict=True):
            total.add_(rows, alpha=weight)
        return total.to(known[0][1].dtype)

    def weights(self, layer: str, step: int, known: tuple[int, ...]) -> list[float]:
        """Return the weights of a projection's rows at the `known` steps, newest first, for a step."""
        key = (self._fitted.sigmas, step, known)
        if key not in self._weights:
            self._weights[key] = self._fitted.coefficients(STREAM, step, known)[:, : len(known)].tolist()
        return self._weights[key][self._number[layer]]


def add_to(known: dict[str, Moments], seen: Mapping[str, Sequence[torch.Tensor]], sigmas: Sequence[float]) -> None:
    """Add rows [n, D] by step of each projection, in the order of `seen`, to the moments of all."""
    moments = known.setdefault(STREAM, Moments.empty(sigmas, len(seen)))
    for number, rows in enumerate(seen.values()):
        flat = torch.stack([each.flatten() for each in rows]).double()
        moments.gram[number, : len(rows), : len(rows)] += flat @ flat.T
