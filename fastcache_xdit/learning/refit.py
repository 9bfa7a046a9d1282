"""Refits the weights of a mask on the trajectories that the mask and its weights lead to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from fastcache_xdit.approx.fit import Places, error_made, fit
from fastcache_xdit.approx.fitted import Refitted
from fastcache_xdit.approx.forms import FORMS
from fastcache_xdit.approx.moments import Halves
from fastcache_xdit.approx.output import NAME, REFERENCES, key_of
from fastcache_xdit.decision.schedule import skipped_steps
from fastcache_xdit.learning.trajectory import Trajectory

LEAST_RESPONSE = 1e-6  # of latents to an output, below which no output could bring them back


def returning(
    trajectory: Trajectory, reference: Trajectory, mask: str, responses: Sequence[float]
) -> list[torch.Tensor]:
    """Return for each step the output that a stand-in should have had, [n, C].

    At a skipped step it is the one behind which the latents are those of the reference again, so that errors of earlier
    steps are made good. At a computed step it is the output itself.

    Args:
        trajectory: of a request under a mask.
        reference: of the same request computed in full.
        mask: the mask.
        responses: for each step, by how much the latents behind it follow its output.
    """
    latents, wanted = trajectory.latents(), reference.latents()
    outputs = trajectory.outputs()
    for step, mark in enumerate(mask):
        if mark == "0" and abs(responses[step]) > LEAST_RESPONSE:
            outputs[step] = outputs[step] + (wanted[step] - latents[step]) / responses[step]
    return outputs


def refitted(
    halves: Halves, mask: str, used: Callable[[int, tuple[int, ...]], torch.Tensor], effects: Sequence[float]
) -> dict[Refitted, torch.Tensor]:
    """Return weights [C, K] for the skipped steps of a mask, keyed for a calibration.

    What a skipped step should have had depends on the steps skipped just before it. As they are refitted too, the
    change of their errors is carried over.

    Args:
        halves: moments of what `returning` returned.
        mask: the mask.
        used: returns the weights of these trajectories for a step and all computed steps before it.
        effects: see `OutputForecast`.
    """
    sigmas, refits, changes = halves.training.sigmas, {}, dict[int, torch.Tensor]()
    for step, computed in skipped_steps([mark == "1" for mark in mask]):
        place, known = Places.one(step, computed[:REFERENCES]), computed[:REFERENCES]
        run = range(computed[0] + 1, step) if effects[step] else ()
        carried = torch.stack([effects[k] / effects[step] * changes[k] for k in run]).sum(0)[None] if run else None
        solved = fit(FORMS[NAME], *halves, place, carried=carried).coefficients[0]
        old = solved.clone()
        old[:, : len(known)] = used(step, computed).double()
        changes[step] = error_made(solved, len(sigmas), place) - error_made(old, len(sigmas), place)
        refits[key_of(sigmas, step, known)] = solved[:, : len(known)].float()
    return refits
