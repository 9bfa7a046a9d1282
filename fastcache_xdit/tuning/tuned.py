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
        base = trials[0].learnt or calibration
        return cls(config, replace(base, refits=refits) if refits else base, tuple(trials), tried)

    def save(self, path: str | Path, calibration: str | Path, title: str) -> None:
        """Write a YAML file of what differs from the defaults, and beside it the stand-ins that were fitted anew.

        Args:
            path: the file; paths inside it are relative to its folder.
            calibration: file of the calibration that was tuned with.
            title: its first comment; the trials follow.
        """
        path, calibration = Path(path), Path(calibration)
        path.parent.mkdir(parents=True, exist_ok=True)
        own = path.with_suffix(".safetensors")
        if self.trials[0].learnt:
            self.calibration.save(own)
            calibration = own
        elif any(trial.refits for trial in self.trials):
            self.calibration.save_refits(own, calibration)
            calibration = own
        # what a schedule skips is not the default of a plan, so it is always written
        values = {"granularity": self.config.granularity, **self.config.model_dump(exclude_defaults=True)}
        values["calibration"] = os.path.relpath(calibration, path.parent)
        lines = [f"# {title}"] + [
            f"#   {len(trial.mask)} steps: {trial.compute_ratio:.1%} of block FLOPs, {trial.psnr_db:.1f} dB"
            for trial in self.trials
        ]
        path.write_text("\n".join(lines) + "\n" + yaml.safe_dump(values, sort_keys=False))
