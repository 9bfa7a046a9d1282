"""Closed-form fits from second moments: ridge towards a prior, its strength chosen on held-out requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from fastcache_xdit.approx.forms import Form
from fastcache_xdit.approx.moments import Moments

# Relative to each feature's own energy; infinity is the prior itself, which a fit has to beat to be taken.
STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, float("inf"))

RAREST = 1e-3  # share of the largest energy that `directions` takes an axis to have at least


class Places(NamedTuple):
    """Which steps a fit is for: `steps` [P] to be replaced, `references` [P, K] computed before, newest first."""

    steps: torch.Tensor
    references: torch.Tensor

    @classmethod
    def one(cls, step: int, references: Sequence[int]) -> Places:
        """A single place."""
        return cls(torch.tensor([step]), torch.tensor([list(references)]))


class FitResult(NamedTuple):
    """Fitted stand-ins, one for each place.

    Attributes:
        coefficients: [P, D, 2K+2] float64, per channel the weights of Z = [R1..RK, H, H1..HK, 1].
        squared_error: [P] sum of squared errors over the held-out requests.
        energy: [P] sum of squares of the segment's output there.
    """

    coefficients: torch.Tensor
    squared_error: torch.Tensor
    energy: torch.Tensor

    @property
    def relative_error(self) -> torch.Tensor:
        """[P]: norm(error) / norm(output) on held-out requests."""
        return (self.squared_error / self.energy).sqrt()


def fit(
    form: Form,
    training: Moments,
    held_out: Moments,
    places: Places,
    strengths: Sequence[float] = STRENGTHS,
    carried: torch.Tensor | None = None,
) -> FitResult:
    """Least squares of R[t] on a form's features, for every place.

    Minimises |R + carried - F c|^2 + strength |c - prior|^2 per channel (features scaled to unit energy). For each
    place the strength is the one with the least error on `held_out`; the coefficients are then solved from both
    together. `carried` [P, D, 2T+1] is an error of earlier steps, in the states that the moments are of, which this
    step shall make good. Places closer together than the calibrated steps keep their prior: the moments do not tell
    how states curve there.
    """
    mine, theirs, prior = _local(training, places), _local(held_out, places), _prior(form, places)
    energy = _output_energy(theirs, places.references.shape[1])
    if carried is not None:
        mine, theirs = _aimed(mine, training, places, carried), _aimed(theirs, held_out, places, carried)
    tried = torch.tensor(strengths, dtype=torch.float64).expand(len(prior), -1)
    errors = _squared_error(_solve(form, mine, prior, tried), theirs[:, None]).sum(-1)
    if form.residuals:
        errors = errors.masked_fill(_unresolved(training, places)[:, None] & tried.isfinite(), float("inf"))
    best = tried.gather(1, errors.argmin(dim=1, keepdim=True))
    coefficients = _solve(form, mine + theirs, prior, best)[:, 0]
    return FitResult(coefficients, errors.amin(dim=1), energy)


def error_made(coefficients: torch.Tensor, steps: int, place: Places) -> torch.Tensor:
    """[D, 2T+1]: R[t] - z . Z of one place, in the states that moments of `steps` steps are of."""
    index = _states(steps, place)[0]
    error = torch.zeros(coefficients.shape[0], 2 * steps + 1, dtype=torch.float64)
    error[:, index] = torch.cat([-coefficients, torch.ones_like(coefficients[:, :1])], dim=1)
    return error


def directions(form: Form, moments: Moments, place: Places, coefficients: torch.Tensor) -> torch.Tensor:
    """[D, F, 2K+2]: independent ways to change one place's coefficients, each a change of R as large as its error.

    The principal axes of the form's features, so that features which are much alike do not hide each other; axes that
    hardly occur are held short.
    """
    local = _local(moments, place)[0]
    features = form.features(place.references.shape[1])
    energies, axes = torch.linalg.eigh(features @ local[:, :-1, :-1] @ features.T)
    lengths = energies.clamp_min(energies.amax(-1, keepdim=True) * RAREST).clamp_min(1e-30).rsqrt()
    error = _squared_error(coefficients, local).sqrt()
    return error[:, None, None] * lengths[:, :, None] * (axes.transpose(1, 2) @ features)


def _states(total: int, places: Places) -> torch.Tensor:
    """[P, 2K+3]: where Z = [R1..RK, H, H1..HK, 1] and, last, the target R[t] are among the 2T+1 states of moments."""
    steps, references = places
    bias = torch.full((len(steps), 1), 2 * total)
    target = steps[:, None]
    return torch.cat([references, total + target, total + references, bias, target], dim=1)


def _unresolved(moments: Moments, places: Places) -> torch.Tensor:
    """[P] bool: no calibrated step apart, the replaced step and the references of its prior."""
    used = places.references[:, :2]
    return moments.ticks[places.steps] - moments.ticks[used[:, -1]] < used.shape[1] - 1e-6


def _local(moments: Moments, places: Places) -> torch.Tensor:
    """[P, D, 2K+3, 2K+3]: moments of Z and, last, of the target R[t]."""
    index = _states(moments.steps, places)
    return moments.gram[:, index[:, :, None], index[:, None, :]].transpose(0, 1)


def _aimed(local: torch.Tensor, moments: Moments, places: Places, carried: torch.Tensor) -> torch.Tensor:
    """`local` with R[t] + carried for its target."""
    moved = (moments.gram @ carried[..., None])[..., 0]
    index = _states(moments.steps, places)[:, None].expand(-1, moved.shape[1], -1)
    shift = moved.gather(-1, index)
    aimed = local.clone()
    aimed[..., -1, :] += shift
    aimed[..., :, -1] += shift
    aimed[..., -1, -1] += (carried * moved).sum(-1)
    return aimed


def _prior(form: Form, places: Places) -> torch.Tensor:
    """[P, F]."""
    steps, references = places.steps.tolist(), places.references.tolist()
    return torch.stack([form.prior(known, step) for step, known in zip(steps, references, strict=True)])


def _solve(form: Form, local: torch.Tensor, prior: torch.Tensor, strengths: torch.Tensor) -> torch.Tensor:
    """Coefficients [P, C, D, 2K+2] for C strengths [P, C] of the pull to `prior` [P, F]."""
    count = (local.shape[-1] - 3) // 2
    features, offset = form.features(count), form.offset(count)
    gram = features @ local[..., :-1, :-1] @ features.T
    moment = (local[..., :-1, -1] - local[..., :-1, :-1] @ offset) @ features.T
    energy = gram.diagonal(dim1=-2, dim2=-1)
    pull = energy.clamp_min(energy.amax(-1, keepdim=True) * 1e-12).clamp_min(1e-30)
    finite = strengths.isfinite()
    # Where the prior rules nothing is taken from the solution, which must exist all the same.
    ridge = (torch.where(finite, strengths, 1.0) + 1e-12)[:, :, None, None] * pull[:, None]
    wanted = moment - (gram @ prior[:, None, :, None])[..., 0]
    step = torch.linalg.solve(gram[:, None] + torch.diag_embed(ridge), wanted[:, None, ..., None])[..., 0]
    fitted = prior[:, None, None] + torch.where(finite[:, :, None, None], step, 0.0)
    return fitted @ features + offset


def _squared_error(coefficients: torch.Tensor, local: torch.Tensor) -> torch.Tensor:
    """Per channel, |R - z . Z|^2 as a quadratic form in the moments."""
    both = torch.cat([coefficients, -torch.ones_like(coefficients[..., :1])], dim=-1)
    return torch.einsum("...i,...ij,...j->...", both, local.expand(*both.shape, both.shape[-1]), both).clamp_min(0)


def _output_energy(local: torch.Tensor, count: int) -> torch.Tensor:
    """[P]: sum of squares of H + R."""
    entry = local[..., count, count] + 2 * local[..., count, -1] + local[..., -1, -1]
    return entry.sum(-1)
