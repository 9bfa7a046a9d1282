"""What a user asks for: a share of the compute, a speedup, or a quality; and how many steps that allows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

# Names of the goals, with the range of each, ends excluded except that a budget may be 1.
GOALS = {"budget": (0.0, 1.0), "speedup": (1.0, 100.0), "psnr": (0.0, 100.0)}
DEFAULT = 0.5  # budget


@dataclass(frozen=True)
class Known:
    """What was measured of a model at one number of steps, on the requests that it was learnt from.

    Attributes:
        promises: PSNR in dB by number of computed steps, mean of the requests.
        worst: PSNR in dB of the worst of the requests likewise.
        seconds: wall time of a request by number of computed steps.
    """

    promises: Mapping[int, float] = field(default_factory=dict)
    worst: Mapping[int, float] = field(default_factory=dict)
    seconds: Mapping[int, float] = field(default_factory=dict)


class Goal(NamedTuple):
    """A goal such as `budget` 0.4 (share of the steps that are computed), `speedup` 2.5 (wall time), `psnr` 36 (dB)."""

    kind: str = "budget"
    value: float = DEFAULT

    def __str__(self) -> str:
        return f"{self.kind} {self.value:g}"

    def computed(self, steps: int, known: Known) -> int:
        """Return how many of `steps` steps to compute; where nothing is known yet, a speedup s takes a share of 1/s."""
        if self.kind == "psnr":
            return _least_with(self.value, steps, known.promises)
        budget = self.value if self.kind == "budget" else _share_for(self.value, steps, known.seconds)
        return max(1, min(steps, int(budget * steps + 1e-9)))


def _least_with(psnr: float, steps: int, promises: Mapping[int, float]) -> int:
    """Return the least number of computed steps that promises so much; half of them where nothing is known."""
    if not promises:
        return max(1, int(DEFAULT * steps))
    return min((computed for computed, promise in promises.items() if promise >= psnr), default=steps)


def _share_for(speedup: float, steps: int, seconds: Mapping[int, float]) -> float:
    """Return the share of computed steps whose wall time, a straight line through what was timed, gives the speedup."""
    few, many = min(seconds, default=0), max(seconds, default=0)
    if few == many:
        return 1 / speedup
    slope = (seconds[many] - seconds[few]) / (many - few)
    wanted = seconds[many] / speedup
    return (few + (wanted - seconds[few]) / slope) / steps if slope > 0 else 1 / speedup
