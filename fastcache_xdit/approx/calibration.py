"""A calibration: moments of every segment, how errors spread, and the model that they were measured on.

It is kept in one file. A second kind of file holds what `tune` refitted for some masks, and names the calibration that
it refines, which lies beside it.
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

from fastcache_xdit.approx.fitted import Coherence, Fitted, Refitted, Solved
from fastcache_xdit.approx.keys_values import FORM, SEGMENT, STREAM, KeysValues, KeysValuesForecast
from fastcache_xdit.approx.maps import Affine
from fastcache_xdit.approx.packing import (
    MapsBySegment,
    MomentsBySegment,
    pack_maps,
    pack_moments,
    unpack_maps,
    unpack_moments,
)
from fastcache_xdit.approx.tensor_file import TensorFile, digest, read_tensors, write_tensors
from fastcache_xdit.errors import UsageError

FORMAT = "fastcache calibration 1"
REFITS = "fastcache refits 1"


@dataclass
class Calibration:
    """What was measured of one model.

    Attributes:
        identity: what a running model must share (`approx.identity`).
        facts: how it was measured: steps, guidance, size, prompts, dtype, versions, errors of the fits.
        sigmas: noise level of each calibrated step.
        moments: per segment (see `Segment.key`) and stream, both halves of the requests.
        gains: per segment and step, by how much a relative error there shows in the final latents, relative to them.
        spread: per segment, the calibrated test (`decision.significance.Spread.to_dict`).
        coherence: how errors of one request add up, by growing reach.
        refits: coefficients [D, 2K+2] that take the place of solutions.
        maps: per segment and stream, those of `affine` beyond the diagonal, where they were asked for.
        keys_values: moments of the projections to keys and values, where the model's tokens can be computed in part.
    """

    identity: dict[str, Any]
    facts: dict[str, Any]
    sigmas: tuple[float, ...]
    moments: MomentsBySegment
    gains: dict[str, list[float]] = field(default_factory=dict)
    spread: dict[str, dict[str, Any]] = field(default_factory=dict)
    coherence: tuple[Coherence, ...] = ()
    refits: dict[Refitted, torch.Tensor] = field(default_factory=dict)
    maps: MapsBySegment = field(default_factory=dict)
    keys_values: KeysValues | None = None
    _solved: dict[tuple[str, str, bool], Solved] = field(default_factory=dict, init=False, repr=False, compare=False)

    def stand_in(self, segment: str, name: str, carry_errors: bool, follows: bool = False) -> Fitted:
        """Return the fitted stand-in `name` of a segment.

        Args:
            segment: its key.
            name: of the form, see `approx.forms`.
            carry_errors: a skipped step makes good what those before it missed.
            follows: see `Fitted`.
        Raises:
            UsageError: the calibration has no such segment.
        """
        if segment not in self.moments:
            raise UsageError(
                f"the calibration has no segment {segment}; it has {', '.join(self.moments)}. Calibrate again with "
                "this granularity, these lead_blocks, and for pp_decision=stage PipeFusion's degree among --stages"
            )
        solved = self._solved.setdefault((segment, name, carry_errors), Solved())
        coherence = self.coherence if carry_errors else ()
        return Fitted(name, self.moments[segment], solved, self.refits, segment, coherence, follows)

    def forecast(self) -> KeysValuesForecast:
        """Return what makes keys and values of those of earlier steps; there must be `keys_values`."""
        assert self.keys_values is not None
        return KeysValuesForecast(self.keys_values, self._solved.setdefault((SEGMENT, FORM, False), Solved()))

    def affine(self, segment: str, rank: int) -> Affine:
        """Return `affine` of a segment with a diagonal and a part of this rank.

        Raises:
            UsageError: the calibration has no maps of this segment.
        """
        if segment not in self.maps:
            raise UsageError(
                f"the calibration has no affine maps of {segment}", "calibrate with --maps, or set affine_rank to 0"
            )
        return Affine(self.maps[segment], rank)

    def gains_at(self, segment: str, sigmas: Sequence[float]) -> list[float]:
        """Return the `gains` of a segment for another schedule: an error made in a longer step counts for more."""
        logarithms = np.log(np.array(self.gains[segment]) / _widths(self.sigmas))
        interpolated = np.interp(sigmas, self.sigmas[::-1], logarithms[::-1])
        return (np.exp(interpolated) * _widths(sigmas)).tolist()

    def as_saved(self) -> Calibration:
        """Return the calibration as it would be loaded again: what is tried before it is saved is what serves later."""
        moments = unpack_moments(self.sigmas, pack_moments(self._all_moments()))
        return replace(self, **_without_keys_values(moments, self.keys_values.layers if self.keys_values else ()))

    def save(self, path: str | Path) -> None:
        """Write one file; an interrupted write leaves no half file under this name."""
        header = {
            "identity": self.identity,
            "facts": self.facts,
            "levels": self.sigmas,
            "gains": self.gains,
            "spread": self.spread,
            "coherence": self.coherence,
            "layers": self.keys_values.layers if self.keys_values else [],
        }
        write_tensors(path, TensorFile(FORMAT, header, self._tensors()))

    def save_refits(self, path: str | Path, base: str | Path) -> None:
        """Write `refits` alone, as a file that `load` takes: all the rest comes from the calibration file `base`."""
        header = {
            "base": os.path.relpath(base, Path(path).parent),
            "base_stamp": Calibration.cached(base).stamp,
            "refits": list(self.refits),
        }
        tensors = {str(number): refit.contiguous() for number, refit in enumerate(self.refits.values())}
        write_tensors(path, TensorFile(REFITS, header, tensors))

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read a file and check that it is whole.

        Raises:
            UsageError: missing, truncated, foreign or altered; the message names the file and what is wrong with it.
        """
        kind, header, tensors = read_tensors(path, FORMAT, REFITS)
        if kind == REFITS:
            return _refined(Path(path), header, tensors)
        sigmas, layers = tuple(header.pop("levels")), tuple(header.pop("layers"))
        return cls(
            sigmas=sigmas,
            coherence=tuple(Coherence(*values) for values in header.pop("coherence")),
            maps=unpack_maps(tensors),
            **_without_keys_values(unpack_moments(sigmas, tensors), layers),
            **header,
        )

    @classmethod
    def cached(cls, path: str | Path) -> Calibration:
        """Load a file once for each state of it: caches that come and go share what was solved from it."""
        file = Path(path)
        return _loaded(file, file.stat().st_mtime_ns if file.is_file() else 0)

    @cached_property
    def stamp(self) -> str:
        """A digest of what decisions depend on, for ranks to compare."""
        refits = {str(refitted): coefficients for refitted, coefficients in self.refits.items()}
        return digest(json.dumps([self.sigmas, self.gains, self.spread, self.coherence]), self._tensors() | refits)

    def _tensors(self) -> dict[str, torch.Tensor]:
        return pack_moments(self._all_moments()) | pack_maps(self.maps)

    def _all_moments(self) -> MomentsBySegment:
        projected: MomentsBySegment = {SEGMENT: {STREAM: self.keys_values.halves}} if self.keys_values else {}
        return self.moments | projected


def _without_keys_values(moments: MomentsBySegment, layers: tuple[str, ...]) -> dict[str, Any]:
    """Fields of a calibration: in a file, moments of keys and values are one more segment."""
    keys_values = KeysValues(layers, moments.pop(SEGMENT)[STREAM]) if layers else None
    return {"moments": moments, "keys_values": keys_values}


def _refined(path: Path, header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Calibration:
    base = Calibration.load(path.parent / header["base"])
    if base.stamp != header["base_stamp"]:
        raise UsageError(
            f"{path} refines another {header['base']} than the one beside it", "run fastcache-xdit tune again"
        )
    names = [
        Refitted(segment, form, tuple(sigmas), stream, step, tuple(computed))
        for segment, form, sigmas, stream, step, computed in header["refits"]
    ]
    return replace(base, refits={name: tensors[str(number)] for number, name in enumerate(names)})


@lru_cache(maxsize=4)
def _loaded(path: Path, changed: int) -> Calibration:
    return Calibration.load(path)


def _widths(sigmas: Sequence[float]) -> np.ndarray:
    """How far each step goes down; the last one to no noise."""
    return -np.diff(np.array([*sigmas, 0.0]))
