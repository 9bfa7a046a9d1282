"""Refits the weights of a mask on the trajectories that the mask and its weights lead to."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fastcache_xdit.approx.fit import Places, error_made, fit
from fastcache_xdit.approx.fitted import Refitted
from fastcache_xdit.approx.forms import FORMS
from fastcache_xdit.approx.moments import Halves
from fastcache_xdit.approx.output import REFERENCES, form_for, key_of, weighed
from fastcache_xdit.decision.schedule import skipped_steps
from fastcache_xdit.learning.trajectory import Trajectory

LEAST_RESPONSE = 1e-6  # of latents to an output, below which no output could bring them back


def returning(
    trajectory: Trajectory, reference: Trajectory, mask: str, responses: Sequence[float], effects: Sequence[float]
) -> list[torch.Tensor]:
    """Return for each step the output that a stand-in should have had, [n, C].

    At a skipped step it is the one behind which the latents are those of the reference again, so that errors of earlier
    steps are made good. Steps skipped just before it are refitted with it; so what their estimates did is added, as if
    these had been 0. At a computed step it is the output itself.

    Args:
        trajectory: of a request under a mask.
        reference: of the same request computed in full.
        mask: the mask.
        responses: for each step, by how much the latents behind it follow its output.
        effects: see `OutputForecast`.
    """
    latents, wanted = trajectory.latents(), reference.latents()
    outputs = trajectory.outputs()
    targets = list(outputs)
    for step, computed in skipped_steps([mark == "1" for mark in mask]):
        if abs(responses[step]) > LEAST_RESPONSE:
            targets[step] = outputs[step] + (wanted[step] - latents[step]) / responses[step]
        for earlier in _run(step, computed, effects):
            targets[step] = targets[step] + effects[earlier] / effects[step] * outputs[earlier]
    return targets


def refitted(halves: Halves, mask: str, effects: Sequence[float]) -> dict[Refitted, torch.Tensor]:
    """Return weights for the skipped steps of a mask as `weighed` cuts them, keyed for a calibration.

    Args:
        halves: moments of what `returning` returned.
        mask: the mask.
        effects: see `OutputForecast`.
    """
    sigmas, refits, estimates = halves.training.sigmas, {}, dict[int, torch.Tensor]()
    form = form_for(halves)
    for step, computed in skipped_steps([mark == "1" for mark in mask]):
        place, known = Places.one(step, computed[:REFERENCES]), computed[:REFERENCES]
        done = [-effects[earlier] / effects[step] * estimates[earlier] for earlier in _run(step, computed, effects)]
        carried = torch.stack(done).sum(dim=0)[None] if done else None
        solved = fit(FORMS[form], *halves, place, carried=carried).coefficients[0]
        estimates[step] = -error_made(solved, len(sigmas), place)
        estimates[step][:, step] = 0.0
        refits[key_of(sigmas, step, known, form)] = weighed(solved, known, form).float()
    return refits


def _run(step: int, computed: tuple[int, ...], effects: Sequence[float]) -> Sequence[int]:
    """Return the steps that were skipped just before this one."""
    return range(computed[0] + 1, step) if effects[step] else ()
