"""What a calibration derives from its fits: masks for further rounds, and errors for the readers of its file."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fastcache_xdit.approx.fit import Places, fit
from fastcache_xdit.approx.forms import FORM, FORMS
from fastcache_xdit.approx.moments import Halves
from fastcache_xdit.tuning.pairs import rms
from fastcache_xdit.tuning.planner import ErrorTable, plan


def planned_mask(halves: Halves, computed: int) -> str:
    """Return the mask of `computed` steps with the least error of the stand-in, all steps being equally important."""
    return plan(ErrorTable(FORM, halves), [1.0] * halves.training.steps, computed).mask


def error_at_half(streams: Mapping[str, Halves]) -> dict[str, float]:
    """Return the relative error of the stand-in for each stream, if every other step is computed."""
    errors = {}
    for stream, (training, held_out) in streams.items():
        steps = torch.arange(5, training.steps, 2)
        places = Places(steps, steps[:, None] - torch.tensor([[1, 3, 5]]))
        errors[stream] = rms(fit(FORMS[FORM], training, held_out, places).relative_error.tolist())
    return errors
