"""The files beside its output from which an interrupted calibration continues; removed at the end."""

from __future__ import annotations

import glob
import json
from pathlib import Path
from typing import Any

import torch

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.errors import UsageError
from fastcache_xdit.files import remove_leftovers, replacing
from fastcache_xdit.host.xdit import world


class Progress:
    """A file for each rank with its sums and state, and one file with the fits of the current round.

    Args:
        output: path of the calibration; None to keep no files.
        facts: how it is measured; one with other facts is not continued.
    """

    def __init__(self, output: Path | None, facts: dict[str, Any]) -> None:
        self.facts = facts
        self.path = output and Path(f"{output}.progress.{world.rank()}")
        self._fits = output and Path(f"{output}.working")

    def save(self, state: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        """Write this rank's state (values for JSON) and sums; an interrupted write leaves the old file."""
        from safetensors.torch import save_file

        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as partial:
            save_file(tensors, partial, {"state": json.dumps({"facts": self.facts, **state})})

    def load(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
        """Return what `save` wrote last; None if there is nothing to continue.

        Raises:
            UsageError: the interrupted calibration had other facts.
        """
        from safetensors import safe_open

        if self.path is None or not self.path.exists():
            return None
        with safe_open(self.path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            state = json.loads(file.metadata()["state"])
        if state.pop("facts") != json.loads(json.dumps(self.facts)):
            raise UsageError(
                f"{self.path} is of an interrupted calibration with other options", "repeat those, or delete the file"
            )
        return state, tensors

    def save_fits(self, calibration: Calibration) -> None:
        """Write the fits for the parts that follow, on the first rank; every rank must call it."""
        if self._fits and world.rank() == 0:
            calibration.save(self._fits)
        world.barrier()

    def load_fits(self) -> Calibration | None:
        """Return what `save_fits` wrote last; None if there is nothing."""
        return Calibration.load(self._fits) if self._fits and self._fits.exists() else None

    def clear(self) -> None:
        """Remove the files; every rank must call it."""
        if self.path and self._fits:
            self._remove(self.path)
            world.barrier()
            self._remove(self._fits)

    def _remove(self, file: Path) -> None:
        file.unlink(missing_ok=True)
        remove_leftovers(file.parent, glob.escape(file.name))
