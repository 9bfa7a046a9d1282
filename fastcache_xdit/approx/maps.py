"""The paper's W H + b with a full matrix, or with a diagonal plus a low-rank matrix, by bucket of steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from fastcache_xdit.approx.linear import Past

BUCKETS = 6  # equal ranges of steps with one map each, S
RIDGE_STRENGTHS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the ridge, relative to each channel's variance


class Covariances(NamedTuple):
    """Sums that the maps of one segment and stream are fitted from, by bucket; those of ranks and requests add up.

    Attributes:
        rows: [S] number of tokens.
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
        """Return sums of nothing, float64."""
        shapes = (BUCKETS,), (BUCKETS, channels), (BUCKETS, channels)
        square = (BUCKETS, channels, channels)
        return cls(*(torch.zeros(shape, dtype=torch.float64) for shape in (*shapes, square, square)))

    def add(self, residuals: Sequence[torch.Tensor], entered: Sequence[torch.Tensor]) -> None:
        """Add one request: for each step, R and H of the same tokens, each [n, D]."""
        for step, (residual, before) in enumerate(zip(residuals, entered, strict=True)):
            bucket = step * BUCKETS // len(entered)
            residual, before = residual.double(), before.double()
            self.rows[bucket] += len(before)
            self.entered[bucket] += before.sum(dim=0)
            self.residual[bucket] += residual.sum(dim=0)
            self.entered_entered[bucket] += before.T @ before
            self.residual_entered[bucket] += residual.T @ before

    def centred(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the covariances [S, D, D] of H, and of R with H."""
        total = self.rows.clamp_min(1)[:, None, None]
        mean = self.entered[:, None] / total
        covariance = self.entered_entered - self.entered[:, :, None] * mean
        cross = self.residual_entered - self.residual[:, :, None] * mean
        return covariance / total, cross / total


@dataclass(frozen=True)
class Maps:
    """Fitted maps of one segment and stream: R = residual + (diagonal + matrix) (H - entered), by bucket.

    Attributes:
        diagonal: [S, D] fit of each channel by itself.
        matrix: [S, D, D] further weights, fitted to what the diagonal misses.
        entered: [S, D] mean of H.
        residual: [S, D] mean of R.
        deviation: [S, D] standard deviation of H, which weighs the channels in a low-rank approximation.
    """

    diagonal: torch.Tensor
    matrix: torch.Tensor
    entered: torch.Tensor
    residual: torch.Tensor
    deviation: torch.Tensor

    def low_rank(self, bucket: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return [D, k] and [k, D] whose product approximates `matrix` best, for channels that vary as those of H."""
        deviation = self.deviation[bucket].float()
        u, s, v = torch.linalg.svd(self.matrix[bucket].float() * deviation, full_matrices=False)
        return (u * s)[:, :rank], v[:rank] / deviation


def fit_maps(training: Covariances, held_out: Covariances) -> Maps:
    """Fit maps by ridge regression towards the diagonal; each bucket uses the strength with the least held-out error.

    Minimises |R - (diagonal + matrix) H|^2 + strength |matrix deviation|^2, with all states centred.
    """
    covariance, cross = training.centred()
    variance = covariance.diagonal(dim1=1, dim2=2).clamp_min(1e-12)
    diagonal = cross.diagonal(dim1=1, dim2=2) / variance
    missing = cross - diagonal[:, :, None] * covariance
    candidates = torch.stack(
        [_right_divided(missing, covariance + strength * torch.diag_embed(variance)) for strength in RIDGE_STRENGTHS]
        + [torch.zeros_like(covariance)]
    )
    matrix = candidates[_errors(candidates, diagonal, held_out).argmin(dim=0), torch.arange(len(covariance))]
    count = training.rows.clamp_min(1)[:, None]
    return Maps(diagonal, matrix, training.entered / count, training.residual / count, variance.sqrt())


def _right_divided(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return left @ inverse(right), for symmetric `right`."""
    return torch.linalg.solve(right, left.transpose(1, 2)).transpose(1, 2)


def _errors(candidates: torch.Tensor, diagonal: torch.Tensor, held_out: Covariances) -> torch.Tensor:
    """[candidates, S]: squared error on held-out requests, without a term that is the same for all candidates."""
    covariance, cross = held_out.centred()
    weights = candidates + torch.diag_embed(diagonal)
    return ((weights @ covariance - 2 * cross) * weights).sum(dim=(-2, -1))


@dataclass
class Affine:
    """The `StandIn` W H + b of one segment, W = I + diagonal + a matrix of rank `rank` (from D on: the full matrix)."""

    maps: Mapping[str, Maps]
    rank: int
    references: int = 1
    entered_kept: int = 0
    _num_steps: int = 0
    _factors: dict[tuple[str, int, torch.device, torch.dtype], list[torch.Tensor]] = field(default_factory=dict)

    def begin(self, sigmas: Sequence[float]) -> None:
        """Begin a request whose steps have these noise levels."""
        self._num_steps = len(sigmas)

    def residual(self, stream: str, entered: torch.Tensor, past: Past) -> torch.Tensor:
        """Return (W - I) H + b; references are not used."""
        diagonal, bias, *factors = self._factors_for(stream, past.step * BUCKETS // self._num_steps, entered)
        total = torch.addcmul(bias, diagonal, entered)
        product = entered
        for factor in reversed(factors):
            product = product @ factor.T
        return total + product

    def _factors_for(self, stream: str, bucket: int, like: torch.Tensor) -> list[torch.Tensor]:
        key = (stream, bucket, like.device, like.dtype)
        if key not in self._factors:
            maps = self.maps[stream]
            tall, wide = maps.low_rank(bucket, self.rank)
            factors = [tall, wide] if 2 * self.rank < len(tall) else [tall @ wide]
            diagonal, mean = maps.diagonal[bucket].float(), maps.entered[bucket].float()
            product = mean
            for factor in reversed(factors):
                product = factor @ product
            bias = maps.residual[bucket].float() - diagonal * mean - product
            self._factors[key] = [tensor.to(like) for tensor in (diagonal, bias, *factors)]
        return self._factors[key]
