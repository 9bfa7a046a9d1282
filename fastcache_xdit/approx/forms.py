"""The fitted stand-ins as data: which cached states each combines, and the prior that it is pulled towards.

The states of a segment at a skipped step are ordered as Z = [R1..RK, H, H1..HK, 1]: residuals and entry states of the
last K computed steps, newest first, with the current entry state H between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fastcache_xdit.approx.linear import line_weights


@dataclass(frozen=True)
class Form:
    """One family of linear approximations (method.md 2).

    Attributes:
        residuals: number of past residuals R1, R2, ... with a weight.
        changes: number of differences of entry states H - H1, H1 - H2, ... with a weight.
        entry: whether H itself has a weight (the paper's W H + b).
        bias: whether there is a constant for each channel.
        keeps_residual: whether R1 is added with weight 1 (exact if nothing changed) and only the rest is fitted.
    """

    residuals: int = 0
    changes: int = 0
    entry: bool = False
    bias: bool = False
    keeps_residual: bool = False

    @property
    def references(self) -> int:
        """Number of computed steps that the form uses."""
        return max(self.residuals, self.changes, int(self.keeps_residual))

    def features(self, count: int) -> torch.Tensor:
        """Return the features [F, 2 count + 2] float64 as combinations of Z, for `count` references."""
        rows = [_unit(count, k) for k in range(min(self.residuals, count))]
        rows += [_unit(count, count + k) - _unit(count, count + 1 + k) for k in range(min(self.changes, count))]
        if self.entry:
            rows.append(_unit(count, count))
        if self.bias:
            rows.append(_unit(count, 2 * count + 1))
        return torch.stack(rows)

    def offset(self, count: int) -> torch.Tensor:
        """Return the part of the estimate that is not fitted, as a combination [2 count + 2] of Z."""
        return _unit(count, 0) if self.keeps_residual else torch.zeros(2 * count + 2, dtype=torch.float64)

    def prior(self, steps: Sequence[float], step: float) -> torch.Tensor:
        """Return the prior [F] of a fit: Taylor 1 (with one reference, reuse) for forms with residuals, else zero.

        Args:
            steps: noise levels of the references, newest first.
            step: noise level of the skipped step.
        """
        prior = torch.zeros(len(self.features(len(steps))), dtype=torch.float64)
        used = steps[: min(2, self.residuals)]
        prior[: len(used)] = torch.tensor(line_weights(used, step), dtype=torch.float64)
        return prior


FORMS = {
    "affine": Form(entry=True, bias=True),
    "delta": Form(changes=1, keeps_residual=True),
    "history": Form(residuals=3),
    "history+entry": Form(residuals=3, entry=True),
    "delta+history": Form(residuals=3, changes=2, bias=True),
}

FORM = "delta+history"  # the form that calibrations are measured for, and that masks are planned and tuned with


def _unit(count: int, index: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(index), 2 * count + 2).double()
