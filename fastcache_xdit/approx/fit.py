"""Closed-form fits from second moments: ridge regression towards a prior, its strength chosen on held-out requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from fastcache_xdit.approx.forms import Form
from fastcache_xdit.approx.moments import Moments

# Ridge strengths relative to the energy of each feature. Infinity is the prior itself, which a fit must improve on.
STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, float("inf"))

RAREST = 1e-3  # least energy of an axis in `directions`, relative to the largest


class Places(NamedTuple):
    """The skipped steps that are fitted, and the computed steps that each of them uses.

    Attributes:
        steps: [P] int64, skipped steps.
        references: [P, K] int64, computed steps before each, newest first.
    """

    steps: torch.Tensor
    references: torch.Tensor

    @classmethod
    def one(cls, step: int, references: Sequence[int]) -> Places:
        """Return a single place."""
        return cls(torch.tensor([step]), torch.tensor([list(references)]))


class FitResult(NamedTuple):
    """Fitted stand-ins, one for each place.

    Attributes:
        coefficients: [P, D, 2K+2] float64, for each channel the weights of Z = [R1..RK, H, H1..HK, 1].
        squared_error: [P] sum of squared errors over the held-out requests.
        energy: [P] sum of squares of the segment's output over the held-out requests.
    """

    coefficients: torch.Tensor
    squared_error: torch.Tensor
    energy: torch.Tensor

    @property
    def relative_error(self) -> torch.Tensor:
        """norm(error) / norm(output) on held-out requests, [P]."""
        return (self.squared_error / self.energy).sqrt()


def fit(
    form: Form,
    training: Moments,
    held_out: Moments,
    places: Places,
    strengths: Sequence[float] = STRENGTHS,
    carried: torch.Tensor | None = None,
) -> FitResult:
    """Fit R[t] to the features of a form by ridge regression, for every place.

    Minimises |R + carried - F c|^2 + strength |c - prior|^2 for each channel, with features scaled to unit energy. Each
    place uses the strength with the least error on `held_out`; its coefficients are then solved from both halves
    together. Places whose steps lie closer together than the calibrated steps keep their prior, because the moments
    hold no information about the curvature there.

    Args:
        form: the features.
        training: moments that candidates are solved from.
        held_out: moments that choose among them.
        places: steps and references.
        strengths: candidates for the strength of the ridge.
        carried: [P, D, 2T+1] error of earlier steps as weights of the states, which this step shall compensate.
    """
    solved, judged, prior = _local(training, places), _local(held_out, places), _prior(form, training, places)
    energy = _output_energy(judged, places.references.shape[1])
    if carried is not None:
        solved = _with_carried(solved, training, places, carried)
        judged = _with_carried(judged, held_out, places, carried)
    candidates = torch.tensor(strengths, dtype=torch.float64).expand(len(prior), -1)
    errors = _squared_error(_solve(form, solved, prior, candidates), judged[:, None]).sum(-1)
    if form.residuals:
        errors = errors.masked_fill(_unresolved(training, places)[:, None] & candidates.isfinite(), float("inf"))
    best = candidates.gather(1, errors.argmin(dim=1, keepdim=True))
    coefficients = _solve(form, solved + judged, prior, best)[:, 0]
    return FitResult(coefficients, errors.amin(dim=1), energy)


def error_made(coefficients: torch.Tensor, steps: int, place: Places) -> torch.Tensor:
    """Return the error R[t] - z . Z of one place as weights [D, 2T+1] of the states in moments of `steps` steps."""
    index = _states(steps, place)[0]
    error = torch.zeros(coefficients.shape[0], 2 * steps + 1, dtype=torch.float64)
    error[:, index] = torch.cat([-coefficients, torch.ones_like(coefficients[:, :1])], dim=1)
    return error


def directions(form: Form, moments: Moments, place: Places, coefficients: torch.Tensor) -> torch.Tensor:
    """Return [D, F, 2K+2]: independent changes of one place's coefficients, each changing R by the norm of its error.

    They are the principal axes of the form's features, so that correlated features can be trained. Axes with hardly any
    energy are limited in length.
    """
    local = _local(moments, place)[0]
    features = form.features(place.references.shape[1])
    energies, axes = torch.linalg.eigh(features @ local[:, :-1, :-1] @ features.T)
    lengths = energies.clamp_min(energies.amax(-1, keepdim=True) * RAREST).clamp_min(1e-30).rsqrt()
    error = _squared_error(coefficients, local).sqrt()
    return error[:, None, None] * lengths[:, :, None] * (axes.transpose(1, 2) @ features)


def _states(total: int, places: Places) -> torch.Tensor:
    """[P, 2K+3]: indices of Z = [R1..RK, H, H1..HK, 1] and, last, of the target R[t] among the 2T+1 states."""
    steps, references = places
    bias = torch.full((len(steps), 1), 2 * total)
    target = steps[:, None]
    return torch.cat([references, total + target, total + references, bias, target], dim=1)


def _unresolved(moments: Moments, places: Places) -> torch.Tensor:
    """[P] bool: whether the steps of a place and its prior lie closer together than calibrated steps."""
    used = places.references[:, :2]
    return moments.positions[places.steps] - moments.positions[used[:, -1]] < used.shape[1] - 1e-6


def _local(moments: Moments, places: Places) -> torch.Tensor:
    """[P, D, 2K+3, 2K+3]: moments of Z and, last, of the target R[t]."""
    index = _states(moments.steps, places)
    return moments.gram[:, index[:, :, None], index[:, None, :]].transpose(0, 1)


def _with_carried(local: torch.Tensor, moments: Moments, places: Places, carried: torch.Tensor) -> torch.Tensor:
    """Return `local` with the target R[t] + carried."""
    cross = (moments.gram @ carried[..., None])[..., 0]
    index = _states(moments.steps, places)[:, None].expand(-1, cross.shape[1], -1)
    shift = cross.gather(-1, index)
    shifted = local.clone()
    shifted[..., -1, :] += shift
    shifted[..., :, -1] += shift
    shifted[..., -1, -1] += (carried * cross).sum(-1)
    return shifted


def _prior(form: Form, moments: Moments, places: Places) -> torch.Tensor:
    """[P, F]: the prior of each place; straight lines are drawn over the noise level, since steps may be uneven."""
    sigmas = torch.tensor(moments.sigmas, dtype=torch.float64)
    pairs = zip(sigmas[places.steps].tolist(), sigmas[places.references].tolist(), strict=True)
    return torch.stack([form.prior(references, step) for step, references in pairs])


def _solve(form: Form, local: torch.Tensor, prior: torch.Tensor, strengths: torch.Tensor) -> torch.Tensor:
    """Solve for coefficients [P, C, D, 2K+2], given C strengths [P, C] of the pull towards `prior` [P, F]."""
    count = (local.shape[-1] - 3) // 2
    features, offset = form.features(count), form.offset(count)
    gram = features @ local[..., :-1, :-1] @ features.T
    moment = (local[..., :-1, -1] - local[..., :-1, :-1] @ offset) @ features.T
    energy = gram.diagonal(dim1=-2, dim2=-1)
    pull = energy.clamp_min(energy.amax(-1, keepdim=True) * 1e-12).clamp_min(1e-30)
    finite = strengths.isfinite()
    # With an infinite strength the solution is not used, but it must exist.
    ridge = (torch.where(finite, strengths, 1.0) + 1e-12)[:, :, None, None] * pull[:, None]
    remainder = moment - (gram @ prior[:, None, :, None])[..., 0]
    step = torch.linalg.solve(gram[:, None] + torch.diag_embed(ridge), remainder[:, None, ..., None])[..., 0]
    fitted = prior[:, None, None] + torch.where(finite[:, :, None, None], step, 0.0)
    return fitted @ features + offset


def _squared_error(coefficients: torch.Tensor, local: torch.Tensor) -> torch.Tensor:
    """Return |R - z . Z|^2 of each channel, as a quadratic form in the moments."""
    both = torch.cat([coefficients, -torch.ones_like(coefficients[..., :1])], dim=-1)
    return torch.einsum("...i,...ij,...j->...", both, local.expand(*both.shape, both.shape[-1]), both).clamp_min(0)


def _output_energy(local: torch.Tensor, count: int) -> torch.Tensor:
    """[P]: sum of squares of the output H + R."""
    entry = local[..., count, count] + 2 * local[..., count, -1] + local[..., -1, -1]
    return entry.sum(-1)
