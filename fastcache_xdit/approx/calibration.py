"""The calibration file: moments of every segment, how errors spread, and the model that they were measured on.

One safetensors file with a JSON header; nothing in it is executed. A second kind holds what `tune` refitted for some
masks and names the calibration that it refines, which lies beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fastcache_xdit.approx.fitted import Coherence, Fitted, Halves, Refitted, Solved
from fastcache_xdit.approx.keys_values import FORM, SEGMENT, STREAM, Forecast, KeysValues
from fastcache_xdit.approx.maps import Affine, Maps
from fastcache_xdit.approx.moments import Moments
from fastcache_xdit.errors import UsageError

FORMAT = "fastcache calibration 1"
REFITS = "fastcache refits 1"
BASE_IDENTITY = ("model", "model_config", "scheduler", "scheduler_config")
IDENTITY = (*BASE_IDENTITY, "weights", "adapters")


@dataclass
class Calibration:
    """What was measured of one model.

    Attributes:
        identity: what a running model must share (`IDENTITY`): names, digests of configs, and a fingerprint of weights.
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
    moments: dict[str, dict[str, Halves]]
    gains: dict[str, list[float]] = field(default_factory=dict)
    spread: dict[str, dict[str, Any]] = field(default_factory=dict)
    coherence: tuple[Coherence, ...] = ()
    refits: dict[Refitted, torch.Tensor] = field(default_factory=dict)
    maps: dict[str, dict[str, Maps]] = field(default_factory=dict)
    keys_values: KeysValues | None = None
    _solved: dict[tuple[str, str, bool], Solved] = field(default_factory=dict, repr=False, compare=False)

    def stand_in(self, segment: str, name: str, carry_errors: bool, follows: bool = False) -> Fitted:
        """The fitted stand-in `name` of a segment; with `carry_errors` it makes good what those before it missed.

        `follows`: see `Fitted`.

        Raises:
            UsageError: the file has no such segment.
        """
        if segment not in self.moments:
            raise UsageError(
                f"the calibration has no segment {segment}",
                f"it has {', '.join(self.moments)}. Calibrate again with "
                "this granularity, these lead_blocks, and for pp_decision=stage PipeFusion's degree among --stages",
            )
        solved = self._solved.setdefault((segment, name, carry_errors), Solved())
        coherence = self.coherence if carry_errors else ()
        return Fitted(name, self.moments[segment], solved, self.refits, segment, coherence, follows)

    def forecast(self) -> Forecast:
        """What makes keys and values of static tokens; there must be `keys_values`."""
        assert self.keys_values is not None
        return Forecast(self.keys_values, self._solved.setdefault((SEGMENT, FORM, False), Solved()))

    def affine(self, segment: str, rank: int) -> Affine:
        """`affine` of a segment with a diagonal and a part of this rank.

        Raises:
            UsageError: the file has no maps of this segment.
        """
        if segment not in self.maps:
            raise UsageError(
                f"the calibration has no affine maps of {segment}", "calibrate with --maps, or set affine_rank to 0"
            )
        return Affine(self.maps[segment], rank)

    def gains_at(self, segment: str, sigmas: Sequence[float]) -> list[float]:
        """`gains` of a segment for another schedule: an error made in a longer step counts for more."""
        known = np.log(np.array(self.gains[segment]) / _widths(self.sigmas))
        at = np.interp(sigmas, self.sigmas[::-1], known[::-1])
        return (np.exp(at) * _widths(sigmas)).tolist()

    def check(self, running: Mapping[str, Any], allow_adapters: bool = False) -> None:
        """Compare with the running model's identity, or with `allow_adapters` with what no adapter changes of it.

        Raises:
            UsageError: names the first field that differs, with both values.
        """
        for name in BASE_IDENTITY if allow_adapters else IDENTITY:
            if not _same(self.identity.get(name), running.get(name)):
                raise UsageError(
                    f"the calibration was made for another model: {name} is {_short(running.get(name))} here, and "
                    f"{_short(self.identity.get(name))} in the calibration",
                    f"run fastcache-xdit calibrate on this model"
                    f"{'' if name in BASE_IDENTITY else ', or set allow_adapters to use it all the same'}",
                )

    def save(self, path: str | Path) -> None:
        """Write one safetensors file; an interrupted write leaves no half file under this name."""
        header = {
            "identity": self.identity,
            "facts": self.facts,
            "levels": self.sigmas,
            "gains": self.gains,
            "spread": self.spread,
            "coherence": self.coherence,
            "layers": self.keys_values.layers if self.keys_values else [],
        }
        _write(path, FORMAT, header, self._tensors())

    def save_refits(self, path: str | Path, base: str | Path) -> None:
        """Write `refits` alone, as a file that `load` takes: all the rest comes from the calibration file `base`."""
        header = {
            "base": os.path.relpath(base, Path(path).parent),
            "base_stamp": Calibration.shared(base).stamp,
            "refits": list(self.refits),
        }
        tensors = {str(number): each.contiguous() for number, each in enumerate(self.refits.values())}
        _write(path, REFITS, header, tensors)

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read a file and check that it is whole.

        Raises:
            UsageError: missing, truncated, foreign or altered; the message names the file and what is wrong with it.
        """
        kind, header, tensors = _read(path)
        if kind == REFITS:
            return _refined(Path(path), header, tensors)
        sigmas, coherence = tuple(header.pop("levels")), tuple(Coherence(*each) for each in header.pop("coherence"))
        moments, layers = _moments(sigmas, tensors), tuple(header.pop("layers"))
        projected = KeysValues(layers, moments.pop(SEGMENT)[STREAM]) if layers else None
        return cls(
            sigmas=sigmas,
            coherence=coherence,
            moments=moments,
            maps=_maps(tensors),
            keys_values=projected,
            **header,
        )

    @classmethod
    def shared(cls, path: str | Path) -> Calibration:
        """`load`, once for each state of the file: caches that come and go share what was solved from it."""
        found = Path(path)
        return _loaded(found, found.stat().st_mtime_ns if found.is_file() else 0)

    @cached_property
    def stamp(self) -> str:
        """A digest of what decisions depend on, for ranks to compare."""
        refits = {str(refitted): coefficients for refitted, coefficients in self.refits.items()}
        return _digest(json.dumps([self.sigmas, self.gains, self.spread, self.coherence]), self._tensors() | refits)

    def _tensors(self) -> dict[str, torch.Tensor]:
        projected = {SEGMENT: {STREAM: self.keys_values.halves}} if self.keys_values else {}
        moments = {
            f"{segment}/{stream}/{half}": moments.packed()
            for segment, streams in (self.moments | projected).items()
            for stream, halves in streams.items()
            for half, moments in halves._asdict().items()
        }
        maps = {
            f"{segment}/{stream}/maps.{name}": values.half() if name == "matrix" else values.float()
            for segment, streams in self.maps.items()
            for stream, each in streams.items()
            for name, values in vars(each).items()
        }
        return moments | maps


def _write(path: str | Path, kind: str, header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    text, partial = json.dumps(header), Path(f"{path}.partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, partial, {"format": kind, "header": text, "digest": _digest(text, tensors)})
    partial.chmod(0o644)  # safetensors leaves it to its owner alone, and ranks of other users read it too
    partial.replace(path)


def _read(path: str | Path) -> tuple[str, dict[str, Any], dict[str, torch.Tensor]]:
    """Format, header and tensors. Raises UsageError as `Calibration.load`."""
    if not Path(path).is_file():
        raise UsageError(f"no such calibration file: {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path} is truncated or no safetensors file: {error}") from None
    kind = metadata.get("format", "another")
    if kind not in (FORMAT, REFITS):
        raise UsageError(f"{path} is no {FORMAT!r} file but {kind!r}")
    if metadata.get("digest") != _digest(metadata.get("header", ""), tensors):
        raise UsageError(f"{path} was altered after it was written: its digest does not match", "calibrate again")
    return kind, json.loads(metadata["header"]), tensors


def _refined(path: Path, header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Calibration:
    base = Calibration.load(path.parent / header["base"])
    if base.stamp != header["base_stamp"]:
        raise UsageError(
            f"{path} refines another {header['base']} than the one beside it", "run fastcache-xdit tune again"
        )
    names = [
        Refitted(segment, form, tuple(sigmas), stream, step, tuple(known))
        for segment, form, sigmas, stream, step, known in header["refits"]
    ]
    return replace(base, refits={name: tensors[str(number)] for number, name in enumerate(names)})


@lru_cache(maxsize=4)
def _loaded(path: Path, changed: int) -> Calibration:
    return Calibration.load(path)


def _moments(sigmas: tuple[float, ...], tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, Halves]]:
    found: dict[str, dict[str, Halves]] = {}
    for name in tensors:
        segment, stream, half = name.split("/")
        if half == "training":
            pair = (tensors[f"{segment}/{stream}/{each}"] for each in Halves._fields)
            found.setdefault(segment, {})[stream] = Halves(*(Moments.unpacked(sigmas, packed) for packed in pair))
    return found


def _maps(tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, Maps]]:
    found: dict[str, dict[str, Maps]] = {}
    names = [field.name for field in fields(Maps)]
    for name in tensors:
        segment, stream, what = name.split("/")
        if what == "maps.matrix":
            parts = (tensors[f"{segment}/{stream}/maps.{each}"] for each in names)
            found.setdefault(segment, {})[stream] = Maps(*parts)
    return found


def _digest(header: str, tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()


def _same(mine: Any, theirs: Any) -> bool:
    """Equal; fingerprints (name -> norm) where the names that both hold differ by rounding only."""
    if not isinstance(mine, dict) or not isinstance(theirs, dict):
        return mine == theirs
    shared = mine.keys() & theirs.keys()
    return all(abs(mine[name] - theirs[name]) <= 1e-3 * abs(mine[name]) for name in shared)


def _widths(sigmas: Sequence[float]) -> np.ndarray:
    """How far each step goes down; the last one to no noise."""
    return -np.diff(np.array([*sigmas, 0.0]))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
