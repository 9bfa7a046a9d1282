"""The sums of a calibration on this rank: moments, and covariances if full matrices are fitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from fastcache_xdit.approx.maps import Covariances, fit_maps
from fastcache_xdit.approx.moments import Halves, Moments
from fastcache_xdit.approx.packing import MapsBySegment, MomentsBySegment
from fastcache_xdit.host.xdit import world
from fastcache_xdit.tuning.recorder import Recorder


class Sums:
    """Sums by half of the requests (`Halves`), segment and stream.

    Args:
        with_covariances: whether to add up covariances too.
    """

    def __init__(self, with_covariances: bool) -> None:
        self._with_covariances = with_covariances
        self._moments: dict[str, dict[str, dict[str, Moments]]] = {half: {} for half in Halves._fields}
        self._covariances: dict[str, dict[str, dict[str, Covariances]]] = {half: {} for half in Halves._fields}

    def add(self, recorder: Recorder, sigmas: Sequence[float], held_out: bool) -> None:
        """Add one finished request."""
        half = "held_out" if held_out else "training"
        recorder.add_to(self._moments[half], sigmas)
        if self._with_covariances:
            recorder.add_to_covariances(self._covariances[half], len(sigmas))

    def moments(self, sigmas: Sequence[float]) -> MomentsBySegment:
        """Return the moments summed over all ranks; every rank must call it."""
        moments: MomentsBySegment = {}
        for segment, streams in sorted(self._moments["training"].items()):
            for stream in sorted(streams):
                grams = (self._moments[half][segment][stream].gram for half in Halves._fields)
                halves = Halves(*(Moments(sigmas, world.sum_over_ranks(gram)) for gram in grams))
                moments.setdefault(segment, {})[stream] = halves
        return moments

    def maps(self) -> MapsBySegment:
        """Fit maps to the sums over all ranks; every rank must call it."""
        maps: MapsBySegment = {}
        for segment, streams in sorted(self._covariances["training"].items()):
            for stream in sorted(streams):
                sums = (self._covariances[half][segment][stream] for half in Halves._fields)
                training, held_out = (Covariances(*map(world.sum_over_ranks, covariances)) for covariances in sums)
                maps.setdefault(segment, {})[stream] = fit_maps(training, held_out)
        return maps

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return this rank's sums by name, for a file."""
        grams = {
            f"{half}/{segment}/{stream}": moments.gram
            for half, segments in self._moments.items()
            for segment, streams in segments.items()
            for stream, moments in streams.items()
        }
        covariances = {
            f"{half}/{segment}/{stream}/{name}": sums
            for half, segments in self._covariances.items()
            for segment, streams in segments.items()
            for stream, covariances in streams.items()
            for name, sums in covariances._asdict().items()
        }
        return grams | covariances

    def restore(self, tensors: Mapping[str, torch.Tensor], sigmas: Sequence[float]) -> None:
        """Set the sums to those that `tensors` returned; `sigmas` are the noise levels of the steps."""
        for name in tensors:
            half, segment, stream, *field = name.split("/")
            if not field:
                self._moments[half].setdefault(segment, {})[stream] = Moments(sigmas, tensors[name])
            elif field == ["rows"]:
                parts = (tensors[f"{half}/{segment}/{stream}/{part}"] for part in Covariances._fields)
                self._covariances[half].setdefault(segment, {})[stream] = Covariances(*parts)
