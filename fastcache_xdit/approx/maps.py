"""The paper's W H + b with a whole matrix, or with a diagonal and a low-rank part, by bucket of noise levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from fastcache_xdit.approx.linear import Past

BUCKETS = 6  # of noise levels, equal in steps
STRENGTHS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the ridge, relative to each channel's variance


class Covariances(NamedTuple):
    """What the maps of one segment and stream are fitted from, by bucket; those of ranks and requests add.

    Attributes:
        rows: [S] tokens seen.
        entered: [S, D] sum of H.
        residual: [S, D] sum of R.
        entered_entered: [S, D, D] sum of H Hᵀ.
        residual_entered: [S, D, D] sum of R Hᵀ.
    """

    rows: torch.Tensor
    entered: torch.Tensor
    residual: torch.Tensor
    entered_entered: torch.Tensor
    residual_entered: torch.Tensor

    @classmethod
    def empty(cls, channels: int) -> Covariances:
        """Nothing yet, float64."""
        shapes = (BUCKETS,), (BUCKETS, channels), (BUCKETS, channels)
        square = (BUCKETS, channels, channels)
        return cls(*(torch.zeros(shape, dtype=torch.float64) for shape in (*shapes, square, square)))

    def add(self, residuals: Sequence[torch.Tensor], entered: Sequence[torch.Tensor]) -> None:
        """Add one request: per step R and H of the same tokens, each [n, D]."""
        for step, (residual, before) in enumerate(zip(residuals, entered, strict=True)):
            bucket = step * BUCKETS // len(entered)
            residual, before = residual.double(), before.double()
            self.rows[bucket] += len(before)
            self.entered[bucket] += before.sum(dim=0)
            self.residual[bucket] += residual.sum(dim=0)
            self.entered_entered[bucket] += before.T @ before
            self.residual_entered[bucket] += residual.T @ before

    def centred(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Covariance of H [S, D, D], and of R with H."""
        total = self.rows.clamp_min(1)[:, None, None]
        mean = self.entered[:, None] / total
        own = self.entered_entered - self.entered[:, :, None] * mean
        cross = self.residual_entered - self.residual[:, :, None] * mean
        return own / total, cross / total


@dataclass(frozen=True)
class Maps:
    """Fitted maps of one segment and stream: R = residual + (diagonal + matrix) (H - entered), by bucket.

    Attributes:
        diagonal: [S, D] the fit of each channel by itself.
        matrix: [S, D, D] what other channels add to it.
        entered: [S, D] mean of H.
        residual: [S, D] mean of R.
        spread: [S, D] standard deviation of H, by which a low rank keeps what counts.
    """

    diagonal: torch.Tensor
    matrix: torch.Tensor
    entered: torch.Tensor
    residual: torch.Tensor
    spread: torch.Tensor

    def low_rank(self, bucket: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """[D, k] and [k, D] whose product is the best approximation of `matrix` for channels spread as H is."""
        spread = self.spread[bucket].float()
        u, s, v = torch.linalg.svd(self.matrix[bucket].float() * spread, full_matrices=False)
        return (u * s)[:, :rank], v[:rank] / spread


def fit_maps(training: Covariances, held_out: Covariances) -> Maps:
    """Ridge towards the diagonal fit, its strength by bucket that with the least error on `held_out`.

    Minimises |R - (diagonal + matrix) H|^2 + strength |matrix spread|^2, all centred.
    """
    own, cross = training.centred()
    variance = own.diagonal(dim1=1, dim2=2).clamp_min(1e-12)
    diagonal = cross.diagonal(dim1=1, dim2=2) / variance
    missing = cross - diagonal[:, :, None] * own
    tried = torch.stack(
        [_right_divided(missing, own + strength * torch.diag_embed(variance)) for strength in STRENGTHS]
        + [torch.zeros_like(own)]
    )
    matrix = tried[_errors(tried, diagonal, held_out).argmin(dim=0), torch.arange(len(own))]
    count = training.rows.clamp_min(1)[:, None]
    return Maps(diagonal, matrix, training.entered / count, training.residual / count, variance.sqrt())


def _right_divided(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left @ inverse(right), for symmetric `right`."""
    return torch.linalg.solve(right, left.transpose(1, 2)).transpose(1, 2)


def _errors(tried: torch.Tensor, diagonal: torch.Tensor, held_out: Covariances) -> torch.Tensor:
    """[candidates, S]: squared error on other requests, but for what all candidates share."""
    own, cross = held_out.centred()
    whole = tried + torch.diag_embed(diagonal)
    return ((whole @ own - 2 * cross) * whole).sum(dim=(-2, -1))


@dataclass
class Affine:
    """`StandIn` W H + b of one segment, W = I + diagonal + a part of this rank (at least D: whole)."""

    maps: Mapping[str, Maps]
    rank: int
    references: int = 1
    entered_kept: int = 0
    _steps: int = 0
    _factors: dict[tuple[str, int, torch.device, torch.dtype], list[torch.Tensor]] = field(default_factory=dict)

    def begin(self, sigmas: Sequence[float]) -> None:
        """Begin a request whose steps have these noise levels."""
        self._steps = len(sigmas)

    def residual(self, stream: str, entered: torch.Tensor, past: Past) -> torch.Tensor:
        """Return (W - I) H + b: references are not looked at."""
        diagonal, bias, *factors = self._factors_for(stream, past.step * BUCKETS // self._steps, entered)
        total = torch.addcmul(bias, diagonal, entered)
        through = entered
        for factor in reversed(factors):
            through = through @ factor.T
        return total + through

    def _factors_for(self, stream: str, bucket: int, like: torch.Tensor) -> list[torch.Tensor]:
        key = (stream, bucket, like.device, like.dtype)
        if key not in self._factors:
            maps = self.maps[stream]
            tall, wide = maps.low_rank(bucket, self.rank)
            factors = [tall, wide] if 2 * self.rank < len(tall) else [tall @ wide]
            diagonal, mean = maps.diagonal[bucket].float(), maps.entered[bucket].float()
            moved = mean
            for factor in reversed(factors):
                moved = factor @ moved
            bias = maps.residual[bucket].float() - diagonal * mean - moved
            self._factors[key] = [each.to(like) for each in (diagonal, bias, *factors)]
        return self._factors[key]
