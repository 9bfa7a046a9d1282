"""The fitted stand-ins as data: which combinations of cached states each may use, and what it falls back to.

A segment's states at a skipped step are laid out as Z = [R1..RK, H, H1..HK, 1]: residuals and entry states of the last
K computed steps, newest first, with the current entry state H between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fastcache_xdit.approx.linear import polynomial_weights


@dataclass(frozen=True)
class Form:
    """One family of linear approximations (method.md 2).

    Attributes:
        residuals: how many past residuals R1.. may be weighed.
        changes: how many differences of entry states, H - H1, H1 - H2, ...
        entry: weigh H itself (the paper's W H + b).
        bias: a constant per channel.
        keeps_residual: R1 always counts whole, and only the rest is fitted (exact when nothing changed).
    """

    residuals: int = 0
    changes: int = 0
    entry: bool = False
    bias: bool = False
    keeps_residual: bool = False

    @property
    def references(self) -> int:
        """Computed steps that it looks back to."""
        return max(self.residuals, self.changes, int(self.keeps_residual))

    def features(self, count: int) -> torch.Tensor:
        """[F, 2 count + 2] float64: each row one fitted combination of Z, for `count` references."""
        rows = [_unit(count, k) for k in range(min(self.residuals, count))]
        rows += [_unit(count, count + k) - _unit(count, count + 1 + k) for k in range(min(self.changes, count))]
        if self.entry:
            rows.append(_unit(count, count))
        if self.bias:
            rows.append(_unit(count, 2 * count + 1))
        return torch.stack(rows)

    def offset(self, count: int) -> torch.Tensor:
        """[2 count + 2]: the part of Z that is not fitted."""
        return _unit(count, 0) if self.keeps_residual else torch.zeros(2 * count + 2, dtype=torch.float64)

    def prior(self, steps: Sequence[float], step: float) -> torch.Tensor:
        """[F]: what a fit is pulled towards: Taylor 1 where residuals are weighed (from one, reuse), else zero."""
        prior = torch.zeros(len(self.features(len(steps))), dtype=torch.float64)
        used = steps[: min(2, self.residuals)]
        prior[: len(used)] = torch.tensor(polynomial_weights(used, step), dtype=torch.float64)
        return prior


FORMS = {
    "affine": Form(entry=True, bias=True),
    "delta": Form(changes=1, keeps_residual=True),
    "history": Form(residuals=3),
    "delta+history": Form(residuals=3, changes=2, bias=True),
}

FORM = "delta+history"  # the one that calibrations are measured for, and masks planned and tuned


def _unit(count: int, index: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(index), 2 * count + 2).double()
