"""The calibration file: moments of every segment, how errors spread, and the model that they were measured on.

One safetensors file with a JSON header; nothing in it is executed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fastcache_xdit.approx.fitted import Fitted, Halves, Solved
from fastcache_xdit.approx.forms import FORMS
from fastcache_xdit.approx.moments import Moments

FORMAT = "fastcache calibration 1"
IDENTITY = ("model", "model_config", "weights", "adapters", "scheduler", "scheduler_config")


@dataclass
class Calibration:
    """What was measured of one model.

    Attributes:
        identity: what a running model must share (`IDENTITY`): names, digests of configs, and a fingerprint of weights.
        facts: how it was measured: steps, guidance, size, prompts, dtype, versions, errors of the fits.
        levels: noise level of each calibrated step.
        moments: per segment (see `Segment.key`) and stream, both halves of the requests.
        gains: per segment and step, by how much a relative error there shows in the final latents, relative to them.
        spread: per segment, the calibrated test (`decision.significance.Spread.to_dict`).
    """

    identity: dict[str, Any]
    facts: dict[str, Any]
    levels: tuple[float, ...]
    moments: dict[str, dict[str, Halves]]
    gains: dict[str, list[float]] = field(default_factory=dict)
    spread: dict[str, dict[str, Any]] = field(default_factory=dict)
    _solved: dict[tuple[str, str], Solved] = field(default_factory=dict, repr=False, compare=False)

    def stand_in(self, segment: str, name: str) -> Fitted:
        """The fitted stand-in `name` of a segment.

        Raises:
            ValueError: the file has no such segment.
        """
        if segment not in self.moments:
            raise ValueError(
                f"the calibration has no segment {segment}; it has {', '.join(self.moments)}. Calibrate again with "
                "this granularity, these lead_blocks and this pipefusion_parallel_degree"
            )
        solved = self._solved.setdefault((segment, name), Solved())
        return Fitted(FORMS[name], self.moments[segment], solved)

    def gains_at(self, segment: str, levels: Sequence[float]) -> list[float]:
        """`gains` of a segment for another schedule: an error made in a longer step counts for more."""
        known = np.log(np.array(self.gains[segment]) / _widths(self.levels))
        at = np.interp(levels, self.levels[::-1], known[::-1])
        return (np.exp(at) * _widths(levels)).tolist()

    def check(self, running: Mapping[str, Any]) -> None:
        """Compare with the running model's identity.

        Raises:
            ValueError: names the first field that differs, with both values.
        """
        for name in IDENTITY:
            if not _same(self.identity.get(name), running.get(name)):
                raise ValueError(
                    f"the calibration was made for another model: {name} is {_short(running.get(name))} here, and "
                    f"{_short(self.identity.get(name))} in the calibration; run fastcache-xdit calibrate on this model"
                )

    def save(self, path: str | Path) -> None:
        """Write one safetensors file; an interrupted write leaves no half file under this name."""
        tensors, partial = self._tensors(), Path(f"{path}.partial")
        header = {
            "identity": self.identity,
            "facts": self.facts,
            "levels": self.levels,
            "gains": self.gains,
            "spread": self.spread,
        }
        text = json.dumps(header)
        metadata = {"format": FORMAT, "header": text, "digest": _digest(text, tensors)}
        partial.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, partial, metadata)
        partial.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read a file and check that it is whole.

        Raises:
            ValueError: missing, truncated, foreign or altered; the message names the file and what is wrong with it.
        """
        if not Path(path).is_file():
            raise ValueError(f"no such calibration file: {path}")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is truncated or no safetensors file: {error}") from None
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path} is no {FORMAT!r} file but {metadata.get('format', 'another')!r}")
        if metadata.get("digest") != _digest(metadata.get("header", ""), tensors):
            raise ValueError(f"{path} was altered after it was written: its digest does not match; calibrate again")
        header = json.loads(metadata["header"])
        levels = tuple(header.pop("levels"))
        return cls(levels=levels, moments=_moments(levels, tensors), **header)

    @classmethod
    def shared(cls, path: str | Path) -> Calibration:
        """`load`, once for each state of the file: caches that come and go share what was solved from it."""
        found = Path(path)
        return _loaded(found, found.stat().st_mtime_ns if found.is_file() else 0)

    @cached_property
    def stamp(self) -> str:
        """A digest of what decisions depend on, for ranks to compare."""
        return _digest(json.dumps([self.levels, self.gains, self.spread]), self._tensors())

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {
            f"{segment}/{stream}/{half}": moments.packed()
            for segment, streams in self.moments.items()
            for stream, halves in streams.items()
            for half, moments in halves._asdict().items()
        }


@lru_cache(maxsize=4)
def _loaded(path: Path, changed: int) -> Calibration:
    return Calibration.load(path)


def _moments(levels: tuple[float, ...], tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, Halves]]:
    found: dict[str, dict[str, Halves]] = {}
    for name in tensors:
        segment, stream, half = name.split("/")
        if half == "training":
            pair = (tensors[f"{segment}/{stream}/{each}"] for each in Halves._fields)
            found.setdefault(segment, {})[stream] = Halves(*(Moments.unpacked(levels, packed) for packed in pair))
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


def _widths(levels: Sequence[float]) -> np.ndarray:
    """How far each step goes down; the last one to no noise."""
    return -np.diff(np.array([*levels, 0.0]))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
