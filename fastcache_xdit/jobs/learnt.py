"""What a job has learnt, in its folder, so that every run of it plans alike."""

from __future__ import annotations

import logging
from pathlib import Path

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.errors import UsageError
from fastcache_xdit.files import remove_leftovers

NAME = "learnt.safetensors"
_log = logging.getLogger(__name__)


class LearntFile:
    """`learnt.safetensors` of a job; whoever has the right to learn for it makes it.

    Args:
        folder: of the job.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME

    def read(self) -> Calibration | None:
        """Return what was learnt; None where there is no file, or none that is whole, which is logged."""
        if not self._path.exists():
            return None
        try:
            return Calibration.load(self._path)
        except (ValueError, KeyError, TypeError, AttributeError) as error:  # damaged, or of another version
            problem = error.problem if isinstance(error, UsageError) else f"{self._path} is unreadable ({error!r})"
            _log.warning("fastcache: %s; it is not used: the job learns again from the same items", problem)
            return None

    def save(self, calibration: Calibration) -> None:
        """Write the file, whole or not at all."""
        remove_leftovers(self._path.parent, NAME)
        calibration.save(self._path)
