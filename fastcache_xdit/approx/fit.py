"""Closed-form fits from second moments: ridge towards a prior, its strength chosen on held-out requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from fastcache_xdit.approx.forms import Form
from fastcache_xdit.approx.moments import Moments

# Relative to each feature's own energy; infinity is the prior itself, which a fit has to beat to be taken.
STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, float("inf"))


class Places(NamedTuple):
    """Which steps a fit is for: `steps` [P] to be replaced, `references` [P, K] computed before, newest first."""

    steps: torch.Tensor
    references: torch.Tensor

    @classmethod
    def one(cls, step: int, references: Sequence[int]) -> Places:
        """A single place."""
        return cls(torch.tensor([step]), torch.tensor([list(references)]))


class Fits(NamedTuple):
    """Fitted stand-ins.

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
    form: Form, training: Moments, held_out: Moments, places: Places, strengths: Sequence[float] = STRENGTHS
) -> Fits:
    """Least squares of R[t] on a form's features, for every place.

    Minimises |R - F c|^2 + strength |c - prior|^2 per channel (features scaled to unit energy). For each place, prior
    and strength are those with the least error on `held_out`; the coefficients are then solved from both together.
    """
    mine, theirs = _local(training, places), _local(held_out, places)
    chosen = _choose(form, mine, theirs, places, strengths)
    coefficients = _solve(form, mine + theirs, *chosen)[:, 0]
    error = _squared_error(_solve(form, mine, *chosen)[:, 0], theirs)
    return Fits(coefficients, error.sum(-1), _output_energy(theirs, places.references.shape[1]))


def polynomial_error(order: int, held_out: Moments, places: Places) -> torch.Tensor:
    """[P]: squared error of the unfitted polynomial of this order on the same moments."""
    form = Form(residuals=order + 1)
    local = _local(held_out, places)
    prior = _priors(form, places)[:, -1:]
    nothing = torch.full((len(places.steps), 1), float("inf"), dtype=torch.float64)
    return _squared_error(_solve(form, local, prior, nothing)[:, 0], local).sum(-1)


def _local(moments: Moments, places: Places) -> torch.Tensor:
    """[P, D, 2K+3, 2K+3]: moments of Z and, last, of the target R[t]."""
    steps, references = places
    total = moments.steps
    bias = torch.full((len(steps), 1), 2 * total)
    target = steps[:, None]
    index = torch.cat([references, total + target, total + references, bias, target], dim=1)
    return moments.gram[:, index[:, :, None], index[:, None, :]].transpose(0, 1)


def _priors(form: Form, places: Places) -> torch.Tensor:
    """[P, priors, F]."""
    steps, references = places.steps.tolist(), places.references.tolist()
    return torch.stack([form.priors(known, step) for step, known in zip(steps, references, strict=True)])


def _choose(
    form: Form, mine: torch.Tensor, theirs: torch.Tensor, places: Places, strengths: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The prior [P, 1, F] and strength [P, 1] with the least held-out error, over all pairs of them."""
    priors = _priors(form, places)
    count = priors.shape[1]
    pairs_prior = priors.repeat_interleave(len(strengths), dim=1)
    pairs_strength = torch.tensor(list(strengths) * count, dtype=torch.float64).expand(len(priors), -1)
    tried = _solve(form, mine, pairs_prior, pairs_strength)
    best = _squared_error(tried, theirs[:, None]).sum(-1).argmin(dim=1)
    rows = torch.arange(len(best))
    return pairs_prior[rows, best][:, None], pairs_strength[rows, best][:, None]


def _solve(form: Form, local: torch.Tensor, priors: torch.Tensor, strengths: torch.Tensor) -> torch.Tensor:
    """Coefficients [P, C, D, 2K+2] for C candidates: `priors` [P, C, F], `strengths` [P, C]."""
    count = (local.shape[-1] - 3) // 2
    features, offset = form.features(count), form.offset(count)
    gram = features @ local[..., :-1, :-1] @ features.T
    moment = (local[..., :-1, -1] - local[..., :-1, :-1] @ offset) @ features.T
    energy = gram.diagonal(dim1=-2, dim2=-1)
    pull = energy.clamp_min(energy.amax(-1, keepdim=True) * 1e-12).clamp_min(1e-30)
    finite = strengths.isfinite()
    ridge = torch.where(finite, strengths, 0.0)[:, :, None, None] * pull[:, None] + 1e-12 * pull[:, None]
    wanted = moment[:, None] - (gram[:, None] @ priors[:, :, None, :, None])[..., 0]
    step = torch.linalg.solve(gram[:, None] + torch.diag_embed(ridge), wanted[..., None])[..., 0]
    fitted = priors[:, :, None] + torch.where(finite[:, :, None, None], step, 0.0)
    return fitted @ features + offset


def _squared_error(coefficients: torch.Tensor, local: torch.Tensor) -> torch.Tensor:
    """Per channel, |R - z . Z|^2 as a quadratic form in the moments."""
    both = torch.cat([coefficients, -torch.ones_like(coefficients[..., :1])], dim=-1)
    return torch.einsum("...i,...ij,...j->...", both, local.expand(*both.shape, both.shape[-1]), both).clamp_min(0)


def _output_energy(local: torch.Tensor, count: int) -> torch.Tensor:
    """[P]: sum of squares of H + R."""
    entry = local[..., count, count] + 2 * local[..., count, -1] + local[..., -1, -1]
    return entry.sum(-1)
