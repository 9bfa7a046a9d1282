"""What an interrupted calibration goes on from: files beside its output, gone once it is complete."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.host.xdit import world


class Progress:
    """Each rank's sums and state in a file of its own, and the fits that the parts of a round share in one of all."""

    def __init__(self, output: Path) -> None:
        self.path = Path(f"{output}.progress.{world.rank()}")
        self._fits = Path(f"{output}.working")

    def save(self, state: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        """Write this rank's state (for JSON) and sums; an interrupted write leaves the file as it was."""
        from safetensors.torch import save_file

        partial = Path(f"{self.path}.partial")
        partial.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, partial, {"state": json.dumps(state)})
        partial.replace(self.path)

    def load(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
        """Return what `save` wrote; None where nothing was interrupted."""
        from safetensors import safe_open

        if not self.path.exists():
            return None
        with safe_open(self.path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            return json.loads(file.metadata()["state"]), tensors

    def keep(self, calibration: Calibration) -> None:
        """Write the fits of the parts that follow; the first rank does, and every rank must call it."""
        if world.rank() == 0:
            calibration.save(self._fits)
        world.barrier()

    def kept(self) -> Calibration | None:
        """Return what `keep` wrote last, None where it has not been called."""
        return Calibration.load(self._fits) if self._fits.exists() else None

    def clear(self) -> None:
        """Remove the files; every rank must call it."""
        self.path.unlink(missing_ok=True)
        world.barrier()
        self._fits.unlink(missing_ok=True)
