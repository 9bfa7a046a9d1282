"""Making calls of a pipeline that are watched, and recorded ones once more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.learning.calls import Call, RecordedCall
from fastcache_xdit.learning.likeness import Pictures
from fastcache_xdit.learning.trajectory import Trajectory
from fastcache_xdit.runtime.pilot import Pilot
from fastcache_xdit.runtime.session import Session


@dataclass
class Replays:
    """The calls of one pipeline.

    Args:
        session: of its transformer.
        pilot: plans its requests.
        pictures: what it decodes.

    Attributes:
        is_busy: whether such a call is being made.
    """

    session: Session
    pilot: Pilot
    pictures: Pictures
    is_busy: bool = False

    def watched(self, trajectory: Trajectory, make: Callable[[], Any]) -> Any:
        """Make a call, record what its scheduler sees, and take its pictures."""
        self.session.handover.watch, self.is_busy = trajectory, True
        try:
            with self.pictures.taking():
                return make()
        finally:
            self.session.handover.watch, self.is_busy = None, False

    def again(self, call: Call, recorded: RecordedCall, mask: str, known: Calibration, **changes: Any) -> Trajectory:
        """Make a recorded call once more under a mask; return what its scheduler saw."""
        trajectory, outer = Trajectory(), (self.pilot.calibration, self.pilot.forced)
        self.pilot.learnt(known)
        self.pilot.forced = lambda steps: mask
        try:
            self.watched(trajectory, lambda: recorded.again(call, **changes))
        finally:
            self.pilot.learnt(outer[0])
            self.pilot.forced = outer[1]
        return trajectory
