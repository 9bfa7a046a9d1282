"""What a calibration of the output, of this model or of others, says of requests at given noise levels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.approx.output import SEGMENT, STREAM, OutputForecast
from fastcache_xdit.approx.output_masks import OutputMasks

# Of what was missed, at noise levels that nothing was learnt at: trajectories are others there (docs/what-we-tried.md).
MADE_GOOD_ELSEWHERE = 0.2
DOUBT = 0.3  # of what other models say (`approx.output.doubted`); how it was chosen: docs/what-we-tried.md


class OutputPlan(NamedTuple):
    """The masks at one sequence of noise levels, and what stands in at their skipped steps."""

    masks: OutputMasks
    forecast: OutputForecast


def planned(calibration: Calibration, sigmas: Sequence[float], effects: Sequence[float]) -> OutputPlan:
    """Return what a calibration of the output says at these noise levels.

    Args:
        calibration: of this model, or pooled over others.
        sigmas: the noise levels.
        effects: for each step, by how much an error of its output shows in the final latents.
    """
    halves = calibration.moments[SEGMENT][STREAM].at(_looked_up(calibration, sigmas))
    if is_pooled(calibration):  # what other models missed says too little of what this one misses to make it good
        forecast = OutputForecast(halves, (0.0,) * len(sigmas), calibration.refits, DOUBT)
    else:
        made_good = 1.0 if tuple(sigmas) == calibration.sigmas else MADE_GOOD_ELSEWHERE
        forecast = OutputForecast(halves, effects, calibration.refits, made_good=made_good)
    return OutputPlan(OutputMasks(halves, effects), forecast)


def is_pooled(calibration: Calibration) -> bool:
    """Return whether a calibration is of other models alone."""
    return "pooled" in calibration.facts


def _looked_up(calibration: Calibration, sigmas: Sequence[float]) -> Sequence[float]:
    """Return the noise levels at which to look up what is known; what is pooled knows requests from noise alone.

    Image to image begins at less noise, but as new a trajectory: its first outputs change as much. Taking its first
    noise level for 1 is worth 2 to 11 dB on the small models at strength 0.8.
    """
    is_late = is_pooled(calibration) and sigmas[0] < calibration.sigmas[1]
    return tuple(sigma / sigmas[0] for sigma in sigmas) if is_late else sigmas
