"""Calibrations: the moments of every segment, the propagation of errors, and the model that they were measured on.

A calibration is saved as one file. A second kind of file holds the coefficients that `tune` refitted for some masks,
and names the calibration beside it that they refine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastcache_xdit.approx import packing
from fastcache_xdit.approx.coherence import Coherence
from fastcache_xdit.approx.contents import check_header, told
from fastcache_xdit.approx.fitted import Fitted, Refitted, SolutionCache
from fastcache_xdit.approx.keys_values import FORECAST_FORM, SEGMENT, STREAM, KeysValues, KeysValuesForecast
from fastcache_xdit.approx.maps import Affine
from fastcache_xdit.approx.tensor_file import TensorFile, digest, read_tensors, write_tensors
from fastcache_xdit.errors import UsageError

FORMAT = "fastcache calibration 1"
REFITS = "fastcache refits 1"


@dataclass
class Calibration:
    """The measurements of one model.

    Attributes:
        identity: values that a running model must match (see `approx.identity`).
        facts: how it was measured: steps, guidance, size, prompts, dtype, versions, errors of the fits.
        sigmas: noise level of each calibrated step.
        moments: by segment (`Segment.key`) and stream, the moments of both halves of the requests.
        gains: by segment and step, the relative error of the final latents per relative error of the segment's output.
        spread: by segment, the calibrated test (`decision.significance.Spread.to_dict`).
        coherence: how the errors of one request add up, by growing reach.
        refits: coefficients [D, 2K+2] that replace solutions.
        maps: by segment and stream, the matrices of `affine`, if the calibration was made with them.
        keys_values: moments of the projections to keys and values, for models that support partial steps.
    """

    identity: dict[str, Any]
    facts: dict[str, Any]
    sigmas: tuple[float, ...]
    moments: packing.MomentsBySegment
    gains: dict[str, list[float]] = field(default_factory=dict)
    spread: dict[str, dict[str, Any]] = field(default_factory=dict)
    coherence: tuple[Coherence, ...] = ()
    refits: dict[Refitted, torch.Tensor] = field(default_factory=dict)
    maps: packing.MapsBySegment = field(default_factory=dict)
    keys_values: KeysValues | None = None
    _solutions: dict[tuple[str, str, bool], SolutionCache] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def stand_in(self, segment: str, name: str, carry_errors: bool, follows: bool = False) -> Fitted:
        """Return the fitted stand-in `name` of a segment.

        Args:
            segment: key of the segment.
            name: name of the form, see `approx.forms`.
            carry_errors: whether a skipped step compensates the errors of the ones before it.
            follows: see `Fitted`.
        Raises:
            UsageError: the calibration has no such segment.
        """
        if segment not in self.moments:
            raise UsageError(
                f"the calibration has no segment {segment}; it has {', '.join(self.moments)}. Calibrate again with "
                "this granularity, these lead_blocks, and for pp_decision=stage PipeFusion's degree among --stages"
            )
        solutions = self._solutions.setdefault((segment, name, carry_errors), SolutionCache())
        coherence = self.coherence if carry_errors else ()
        return Fitted(name, self.moments[segment], solutions, self.refits, segment, coherence, follows)

    def forecast(self) -> KeysValuesForecast:
        """Return the extrapolation of keys and values from earlier steps; there must be `keys_values`."""
        assert self.keys_values is not None
        solutions = self._solutions.setdefault((SEGMENT, FORECAST_FORM, False), SolutionCache())
        return KeysValuesForecast(self.keys_values, solutions)

    def affine(self, segment: str, rank: int) -> Affine:
        """Return `affine` of a segment, with a diagonal plus a matrix of this rank.

        Raises:
            UsageError: the calibration has no maps of this segment.
        """
        if segment not in self.maps:
            raise UsageError(
                f"the calibration has no affine maps of {segment}", "calibrate with --maps, or set affine_rank to 0"
            )
        return Affine(self.maps[segment], rank)

    def gains_at(self, segment: str, sigmas: Sequence[float]) -> list[float]:
        """Return the `gains` of a segment for other noise levels; an error in a longer step counts for more."""
        logarithms = np.log(np.array(self.gains[segment]) / _widths(self.sigmas))
        interpolated = np.interp(sigmas, self.sigmas[::-1], logarithms[::-1])
        return (np.exp(interpolated) * _widths(sigmas)).tolist()

    def as_saved(self) -> Calibration:
        """Return the calibration as it would be loaded again, rounded to the precision of the file."""
        moments = packing.unpack_moments(self.sigmas, packing.pack_moments(self._all_moments()))
        return replace(self, **_without_keys_values(moments, self.keys_values.layers if self.keys_values else ()))

    def save(self, path: str | Path) -> None:
        """Write a calibration file; an interrupted write leaves no incomplete file under this name."""
        header = {
            "identity": self.identity,
            "facts": self.facts,
            "levels": self.sigmas,
            "gains": self.gains,
            "spread": self.spread,
            "coherence": self.coherence,
            "layers": self.keys_values.layers if self.keys_values else [],
            "refits": list(self.refits),
        }
        write_tensors(path, TensorFile(FORMAT, header, self._tensors() | packing.pack_refits(self.refits)))

    def save_refits(self, path: str | Path, base: str | Path) -> None:
        """Write `refits` alone to a file that `load` can read; the rest comes from the calibration file `base`."""
        header = {
            "base": os.path.relpath(base, Path(path).parent),
            "base_stamp": Calibration.cached(base).stamp,
            "refits": list(self.refits),
        }
        write_tensors(path, TensorFile(REFITS, header, packing.pack_refits(self.refits)))

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read a file that `save` or `save_refits` wrote.

        Raises:
            UsageError: the file is missing, truncated, altered or of another kind, or lacks what a calibration holds.
        """
        kind, header, tensors = read_tensors(path, FORMAT, REFITS)
        with told(path):
            return _refined(Path(path), header, tensors) if kind == REFITS else cls._unpacked(header, tensors)

    @classmethod
    def _unpacked(cls, header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Calibration:
        check_header(header)
        sigmas, layers = tuple(header.pop("levels")), tuple(header.pop("layers"))
        return cls(
            sigmas=sigmas,
            coherence=tuple(Coherence(*values) for values in header.pop("coherence")),
            maps=packing.unpack_maps(tensors),
            refits=packing.unpack_refits(header.pop("refits", []), tensors),
            **_without_keys_values(packing.unpack_moments(sigmas, tensors), layers),
            **header,
        )

    @classmethod
    def cached(cls, path: str | Path) -> Calibration:
        """Load a file, or return the same object again while the file is unchanged, so that solutions are shared."""
        file = Path(path)
        status = file.stat() if file.is_file() else None  # a file that is replaced within a tick has another inode
        return _loaded(file, status and (status.st_mtime_ns, status.st_ino, status.st_size))

    @cached_property
    def stamp(self) -> str:
        """A digest of all that decisions and estimates depend on, for ranks to compare."""
        refits = {str(refitted): coefficients for refitted, coefficients in self.refits.items()}
        return digest(json.dumps([self.sigmas, self.gains, self.spread, self.coherence]), self._tensors() | refits)

    def _tensors(self) -> dict[str, torch.Tensor]:
        return packing.pack_moments(self._all_moments()) | packing.pack_maps(self.maps)

    def _all_moments(self) -> packing.MomentsBySegment:
        keys_values: packing.MomentsBySegment = {SEGMENT: {STREAM: self.keys_values.halves}} if self.keys_values else {}
        return self.moments | keys_values


def _without_keys_values(moments: packing.MomentsBySegment, layers: tuple[str, ...]) -> dict[str, Any]:
    """Return the fields of a calibration; in a file, the moments of keys and values are one more segment."""
    keys_values = KeysValues(layers, moments.pop(SEGMENT)[STREAM]) if layers else None
    return {"moments": moments, "keys_values": keys_values}


def _refined(path: Path, header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Calibration:
    file = path.parent / header["base"]
    _, values, parts = read_tensors(file, FORMAT)  # never refits, which might name themselves
    with told(file):
        base = Calibration._unpacked(values, parts)
    if base.stamp != header["base_stamp"]:
        raise UsageError(
            f"{path} refines another {header['base']} than the one beside it", "run fastcache-xdit tune again"
        )
    return replace(base, refits=packing.unpack_refits(header["refits"], tensors))


@lru_cache(maxsize=4)
def _loaded(path: Path, version: tuple[int, int, int] | None) -> Calibration:
    return Calibration.load(path)


def _widths(sigmas: Sequence[float]) -> np.ndarray:
    """Return by how much each step lowers the noise level; the last one to 0."""
    return -np.diff(np.array([*sigmas, 0.0]))
