"""What there is to put in place of a rank's segments, and what a calibration knows of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.approx.keys_values import KeysValuesForecast
from fastcache_xdit.approx.linear import StandIn, unfitted
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.decision.significance import Spread
from fastcache_xdit.errors import UsageError
from fastcache_xdit.segments.attention import projections
from fastcache_xdit.segments.segment import Segment


@dataclass(frozen=True)
class StandIns:
    """One rank's part of a calibration, or of none.

    Attributes:
        config: the user's.
        segments: of this rank.
        keys: under which the calibration keeps each segment; PipeFusion stages that skip together have the whole's.
        alone: one stage takes skipped steps alone, from what enters the first stage's blocks on.
        idle: it is another one.
        calibration: without one, stand-ins are not fitted.
    """

    config: FastCacheConfig
    segments: Sequence[Segment]
    keys: Sequence[str]
    alone: bool
    idle: bool
    calibration: Calibration | None

    @cached_property
    def by_segment(self) -> Sequence[StandIn]:
        """One stand-in for each segment.

        Raises:
            UsageError: the calibration does not have it.
        """
        name, rank = self.config.stand_in, self.config.affine_rank
        if self.calibration is None or self.idle:
            return [unfitted("reuse" if self.idle else name) for _ in self.segments]
        if name == "affine" and rank:
            keys = self.keys if self.alone else [segment.key for segment in self.segments]
            return [self.calibration.affine(key, rank) for key in keys]
        carry_errors = self.config.test == "none"  # else each request has a path, and fits, of its own
        return [
            self.calibration.stand_in(key, name, carry_errors, follows=not self._begins(segment, key))
            for segment, key in zip(self.segments, self.keys, strict=True)
        ]

    @cached_property
    def forecast(self) -> KeysValuesForecast | None:
        """What makes keys and values of those of earlier steps."""
        return self.calibration.forecast() if self.calibration and self.calibration.keys_values else None

    def of(self, segment: Segment) -> StandIn:
        """Return the stand-in of a segment."""
        return self.by_segment[segment.index]

    def begin(self, sigmas: Sequence[float]) -> None:
        """Begin a request whose steps have these noise levels."""
        for stand_in in self.by_segment:
            stand_in.begin(sigmas)
        if self.forecast:
            self.forecast.begin(sigmas)

    def static_forecast(self) -> KeysValuesForecast | None:
        """Return `forecast` for static tokens; None where those of the reference step stay.

        Raises:
            UsageError: it is asked for, and the calibration does not know a layer.
        """
        if not self.config.tokens or self.config.tokens.static_kv != "forecast":
            return None
        names = [name for name, _ in projections(self.segments)]
        missing = [name for name in names if not (self.forecast and self.forecast.knows(name))]
        if missing:
            raise UsageError(
                f"tokens.static_kv=forecast needs a calibration that has {missing[0]}",
                "run fastcache-xdit calibrate on this model and set calibration, or set tokens.static_kv=reuse",
            )
        return self.forecast

    def spreads(self) -> dict[int, Spread]:
        """Return the calibrated test of each segment by its index.

        Raises:
            UsageError: the calibration has none for a segment.
        """
        if self.calibration is None or self.config.test != "calibrated":
            return {}
        spread = self.calibration.spread
        missing = [key for key in self.keys if key not in spread]
        if missing:
            raise UsageError(
                f"{self.config.calibration or 'the calibration'} has no calibrated test for {missing[0]}",
                "use test: online, or none",
            )
        pairs = zip(self.segments, self.keys, strict=True)
        return {segment.index: Spread.from_dict(spread[key]) for segment, key in pairs}

    def _begins(self, segment: Segment, key: str) -> bool:
        """Whether what enters the segment is what enters all that it stands for."""
        return self.alone or key.startswith(f"{segment.name}..")
