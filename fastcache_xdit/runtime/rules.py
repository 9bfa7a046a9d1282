"""The decision rules of one request: the marks of its steps and one test for each segment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastcache_xdit.clock import Tick
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.decision.evidence import Decision, Evidence
from fastcache_xdit.decision.policy import decide
from fastcache_xdit.decision.schedule import marks_at
from fastcache_xdit.decision.significance import Calibrated, NoTest, Paper, SignificanceTest, Spread
from fastcache_xdit.segments.segment import Segment
from fastcache_xdit.segments.state import SegmentState


class Rules:
    """Turns the measurements of a segment into a decision.

    The rules do not depend on the states, so every rank has the same ones without a message.

    Args:
        config: the options.
        spreads: data of the calibrated test, by segment index.
    """

    def __init__(self, config: FastCacheConfig, spreads: Mapping[int, Spread] | None = None) -> None:
        self.config = config
        self._spreads = dict(spreads or {})
        self._calibrated: dict[int, SignificanceTest] = {}
        self._of_config: dict[str, SignificanceTest] = {
            "paper": Paper(config.alpha),
            "none": NoTest(),
        }
        self._marks = ""

    def begin(self, sigmas: Sequence[float]) -> None:
        """Begin a request whose steps have these noise levels (none if the number of steps is unknown)."""
        schedule = self.config.schedule
        self._marks = marks_at(schedule, len(sigmas)) if schedule and sigmas else ""
        if self.config.test == "calibrated":
            alpha, tolerance = self.config.alpha, self.config.tolerance
            self._calibrated = {
                index: Calibrated(alpha, tolerance, spread.at(sigmas)) for index, spread in self._spreads.items()
            }

    def decide(
        self, segment: Segment, state: SegmentState, tick: Tick, change: float, motion: float = 0.0, values: int = 1
    ) -> Decision:
        """Return the decision for one segment; `change`, `motion` and `values` are explained in `Evidence`."""
        mark = self._marks[tick.step : tick.step + 1]
        evidence = Evidence(change, state.order, state.track, motion, values, mark == "1", mark == "p")
        return decide(evidence, tick, self.config, self._test(segment))

    def _test(self, segment: Segment) -> SignificanceTest:
        if self.config.test == "calibrated":
            return self._calibrated[segment.index]
        return self._of_config[self.config.test]
