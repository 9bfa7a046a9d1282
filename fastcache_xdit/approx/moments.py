"""Second moments of a segment's states over a trajectory: all that closed-form fits need, and no activations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


class Moments:
    """Per channel, the float64 Gram matrix of Z = [R[0..T-1], H[0..T-1], 1] over all tokens, samples and requests.

    R[t] is what a segment added to one stream at step t, H[t] what entered it (method.md 2). Moments of different
    ranks and requests add.

    Attributes:
        sigmas: noise level of each step, falling.
        gram: [D, 2T+1, 2T+1] float64.
        ticks: [T] float64, where each step lies among the calibrated ones: their own are 0, 1, 2, ...
    """

    def __init__(self, sigmas: Sequence[float], gram: torch.Tensor, ticks: torch.Tensor | None = None) -> None:
        self.sigmas = tuple(sigmas)
        self.gram = gram
        self.ticks = torch.arange(len(sigmas)).double() if ticks is None else ticks

    @classmethod
    def empty(cls, sigmas: Sequence[float], channels: int) -> Moments:
        """Moments of nothing yet."""
        size = 2 * len(sigmas) + 1
        return cls(sigmas, torch.zeros(channels, size, size, dtype=torch.float64))

    @property
    def steps(self) -> int:
        """T, the number of steps."""
        return len(self.sigmas)

    def add(self, residuals: Sequence[torch.Tensor], entered: Sequence[torch.Tensor]) -> None:
        """Add one request: per step R and H of the same tokens, each [n, D]."""
        rows = torch.stack([*residuals, *entered, torch.ones_like(entered[0])]).double()
        by_channel = rows.permute(2, 0, 1)
        self.gram += (by_channel @ by_channel.transpose(1, 2)).to(self.gram.device)

    def plus(self, other: Moments) -> Moments:
        """Both together."""
        return Moments(self.sigmas, self.gram + other.gram, self.ticks)

    def at(self, sigmas: Sequence[float]) -> Moments:
        """These moments for another schedule: states between calibrated noise levels by cubic interpolation.

        Interpolation is linear in the states, Z' = W Z, so the Gram matrix becomes W G W^T and stays one.
        """
        if tuple(sigmas) == self.sigmas:
            return self
        weights = _interpolation(self.sigmas, sigmas)
        both = torch.block_diag(weights, weights, torch.ones(1, 1, dtype=torch.float64))
        ticks = np.interp(sigmas, self.sigmas[::-1], self.ticks.flip(0))
        return Moments(sigmas, both @ self.gram @ both.T, torch.from_numpy(ticks))

    def packed(self) -> torch.Tensor:
        """The upper triangles, [D, (2T+1)(T+1)] float32, for a file."""
        rows, columns = torch.triu_indices(*self.gram.shape[1:])
        return self.gram[:, rows, columns].float().contiguous()

    @classmethod
    def unpacked(cls, sigmas: Sequence[float], packed: torch.Tensor) -> Moments:
        """The inverse of `packed`."""
        moments = cls.empty(sigmas, packed.shape[0])
        rows, columns = torch.triu_indices(*moments.gram.shape[1:])
        moments.gram[:, rows, columns] = packed.double()
        moments.gram[:, columns, rows] = packed.double()
        return moments


def _interpolation(known: Sequence[float], wanted: Sequence[float]) -> torch.Tensor:
    """W [len(wanted), len(known)] with f(wanted) = W f(known); the outermost cubic goes on beyond the ends."""
    from scipy.interpolate import CubicSpline

    rising = torch.tensor(known, dtype=torch.float64).flip(0)
    spline = CubicSpline(rising.numpy(), torch.eye(len(known), dtype=torch.float64).numpy())
    return torch.from_numpy(spline(list(wanted))).flip(1)
