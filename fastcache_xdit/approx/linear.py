"""Stand-ins for skipped blocks: linear in the residuals of computed steps, applied in the model's dtype."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch


class Residual(NamedTuple):
    """What a segment added to one stream at `step`: R = H[out] - H[in], [B, N, D]."""

    step: int
    value: torch.Tensor


def reuse(residuals: Sequence[Residual], step: int) -> torch.Tensor:
    """R[t] = R[ref], the residual of the last computed step; residuals are newest first."""
    return residuals[0].value


def history(residuals: Sequence[Residual], step: int) -> torch.Tensor:
    """R[t] = R1 + (R1 - R0) (t - t1) / (t1 - t0): order-1 finite differences over the last two computed steps.

    With a single reference it is `reuse`.
    """
    if len(residuals) < 2:
        return reuse(residuals, step)
    newest, older = residuals[:2]
    weight = 1 + (step - newest.step) / (newest.step - older.step)
    return torch.lerp(older.value, newest.value, weight)


STAND_INS = {"reuse": reuse, "history": history}
REFERENCES = {"reuse": 1, "history": 2}  # computed steps that a stand-in looks back to
