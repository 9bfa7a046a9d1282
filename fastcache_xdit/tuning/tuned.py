"""What tuning finds: one config for all its numbers of steps, and the calibration that belongs to it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.tuning.refit import Refits
from fastcache_xdit.tuning.search import Trial


@dataclass(frozen=True)
class Tuned:
    """A tuned config, as `fastcache(pipe, tuned.config, calibration=tuned.calibration)` takes it.

    Attributes:
        config: with a mask for each number of steps.
        calibration: with the stand-ins that were fitted anew for these masks.
        trials: what was chosen, for each number of steps: PSNR in dB, share of block FLOPs, mask.
        tried: every mask that was tried, by number of steps.
    """

    config: FastCacheConfig
    calibration: Calibration
    trials: tuple[Trial, ...]
    tried: Mapping[int, Sequence[Trial]]

    @classmethod
    def of(cls, trials: Sequence[Trial], calibration: Calibration, tried: Mapping[int, Sequence[Trial]]) -> Tuned:
        """Put the trials of several numbers of steps together; lead blocks and stand-in must be the same."""
        schedule: dict[int, str] = {}
        refits: Refits = {}
        for trial in trials:
            schedule |= trial.config.schedule or {}
            refits |= trial.refits
        config = trials[0].config.model_copy(update={"schedule": schedule})
        return cls(config, replace(calibration, refits=refits) if refits else calibration, tuple(trials), tried)

    def save(self, path: str | Path, calibration: str | Path, title: str) -> None:
        """Write a YAML file of what differs from the defaults, and beside it the stand-ins that were fitted anew.

        Args:
            path: the file; paths inside it are relative to its folder.
            calibration: file of the calibration that was tuned with.
            title: its first comment; the trials follow.
        """
        path, calibration = Path(path), Path(calibration)
        path.parent.mkdir(parents=True, exist_ok=True)
        if any(trial.refits for trial in self.trials):
            base, calibration = calibration, path.with_suffix(".safetensors")
            self.calibration.save_refits(calibration, base)
        values = self.config.model_dump(exclude_defaults=True)
        values["calibration"] = os.path.relpath(calibration, path.parent)
        lines = [f"# {title}"] + [
            f"#   {len(trial.mask)} steps: {trial.compute_ratio:.1%} of block FLOPs, {trial.psnr_db:.1f} dB"
            for trial in self.trials
        ]
        path.write_text("\n".join(lines) + "\n" + yaml.safe_dump(values, sort_keys=False))
