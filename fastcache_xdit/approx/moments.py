"""Second moments of a segment's states over a request; closed-form fits need nothing else, and no activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch


class Moments:
    """The Gram matrix of Z = [R[0..T-1], H[0..T-1], 1] of each channel, over all tokens, samples and requests.

    H[t] enters the segment in one stream at step t, and R[t] is its residual (method.md 2). Moments of different ranks
    and requests add up.

    Attributes:
        sigmas: noise level of each step, falling.
        gram: [D, 2T+1, 2T+1] float64.
        positions: [T] float64, position of each step among the calibrated steps, which are at 0, 1, 2, ...
    """

    def __init__(self, sigmas: Sequence[float], gram: torch.Tensor, positions: torch.Tensor | None = None) -> None:
        self.sigmas = tuple(sigmas)
        self.gram = gram
        self.positions = torch.arange(len(sigmas)).double() if positions is None else positions

    @classmethod
    def empty(cls, sigmas: Sequence[float], channels: int) -> Moments:
        """Return moments of nothing."""
        size = 2 * len(sigmas) + 1
        return cls(sigmas, torch.zeros(channels, size, size, dtype=torch.float64))

    @property
    def steps(self) -> int:
        """The number of steps T."""
        return len(self.sigmas)

    def add(
        self, residuals: Sequence[torch.Tensor], entered: Sequence[torch.Tensor], weights: torch.Tensor | None = None
    ) -> None:
        """Add one request: for each step, R and H of the same tokens, each [n, D]; if given with weights of samples."""
        rows = torch.stack([*residuals, *entered, torch.ones_like(entered[0])]).double()
        if weights is not None:
            rows *= weights.to(rows.device).sqrt().repeat_interleave(rows.shape[1] // len(weights))[:, None]
        by_channel = rows.permute(2, 0, 1)
        self.gram += (by_channel @ by_channel.transpose(1, 2)).to(self.gram.device)

    def plus(self, other: Moments) -> Moments:
        """Return the sum of two moments at the same noise levels."""
        return Moments(self.sigmas, self.gram + other.gram, self.positions)

    def at(self, sigmas: Sequence[float]) -> Moments:
        """Return the moments at other noise levels, with states interpolated by cubic splines.

        Interpolation is linear in the states, Z' = W Z, so that the Gram matrix becomes W G W^T.
        """
        if tuple(sigmas) == self.sigmas:
            return self
        weights = _interpolation(self.sigmas, sigmas)
        blocks = torch.block_diag(weights, weights, torch.ones(1, 1, dtype=torch.float64))
        positions = np.interp(sigmas, self.sigmas[::-1], self.positions.flip(0))
        return Moments(sigmas, blocks @ self.gram @ blocks.T, torch.from_numpy(positions))

    def packed(self) -> torch.Tensor:
        """Return the upper triangles, [D, (2T+1)(T+1)] float32, for a file."""
        rows, columns = torch.triu_indices(*self.gram.shape[1:])
        return self.gram[:, rows, columns].float().contiguous()

    @classmethod
    def unpacked(cls, sigmas: Sequence[float], packed: torch.Tensor) -> Moments:
        """Build moments from the triangles of `packed`."""
        moments = cls.empty(sigmas, packed.shape[0])
        rows, columns = torch.triu_indices(*moments.gram.shape[1:])
        moments.gram[:, rows, columns] = packed.double()
        moments.gram[:, columns, rows] = packed.double()
        return moments


class Halves(NamedTuple):
    """Moments of the two halves of the requests: those that fits are solved from, and those that judge them."""

    training: Moments
    held_out: Moments

    def at(self, sigmas: Sequence[float]) -> Halves:
        """Return both halves for other noise levels."""
        return Halves(self.training.at(sigmas), self.held_out.at(sigmas))


def _interpolation(sigmas: Sequence[float], targets: Sequence[float]) -> torch.Tensor:
    """Return W [targets, sigmas] with f(targets) = W f(sigmas); the outer cubics extrapolate beyond the ends."""
    from scipy.interpolate import CubicSpline

    # some schedulers take a noise level twice: what the first time showed stands for both
    levels, first = np.unique(np.asarray(sigmas, dtype=np.float64), return_index=True)
    spline = CubicSpline(levels, np.eye(len(sigmas))[first])
    return torch.from_numpy(spline(list(targets)))
