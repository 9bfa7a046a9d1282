"""What there is to put in place of a rank's segments, and what a calibration knows of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.approx.fitted import Fitted
from fastcache_xdit.approx.keys_values import Forecast
from fastcache_xdit.approx.linear import Polynomial, unfitted
from fastcache_xdit.approx.maps import Affine
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.decision.significance import Spread
from fastcache_xdit.errors import UsageError
from fastcache_xdit.segments.attention import projections
from fastcache_xdit.segments.segment import Segment


@dataclass(frozen=True)
class Fits:
    """One rank's part of a calibration, or of none.

    Attributes:
        keys: under which the calibration keeps each segment; PipeFusion stages that skip together have the whole's.
        alone: one stage takes skipped steps alone, from what enters the first stage's blocks on.
        idle: it is another one.
    """

    config: FastCacheConfig
    segments: Sequence[Segment]
    keys: Sequence[str]
    alone: bool
    idle: bool
    calibration: Calibration | None

    @cached_property
    def stand_ins(self) -> Sequence[Fitted | Affine | Polynomial]:
        """One for each segment. Raises UsageError for what the calibration does not have."""
        name, rank = self.config.stand_in, self.config.affine_rank
        if self.calibration is None or self.idle:
            return [unfitted("reuse" if self.idle else name) for _ in self.segments]
        if name == "affine" and rank:
            own = self.keys if self.alone else [segment.key for segment in self.segments]
            return [self.calibration.affine(key, rank) for key in own]
        carry = self.config.test == "none"  # else each request has a path, and fits, of its own
        return [
            self.calibration.stand_in(key, name, carry, follows=not self._begins(segment, key))
            for segment, key in zip(self.segments, self.keys, strict=True)
        ]

    @cached_property
    def forecast(self) -> Forecast | None:
        """What makes keys and values of those of earlier steps."""
        return self.calibration.forecast() if self.calibration and self.calibration.keys_values else None

    @property
    def static_forecast(self) -> Forecast | None:
        """The same for static tokens; None where those of the reference step stay.

        Raises:
            UsageError: it is asked for, and the calibration does not know a layer.
        """
        if not self.config.tokens or self.config.tokens.static_kv != "forecast":
            return None
        missing = [name for name, _ in projections(self.segments) if not (self.forecast and self.forecast.knows(name))]
        if missing:
            raise UsageError(
                f"tokens.static_kv=forecast needs a calibration that has {missing[0]}",
                "run fastcache-xdit calibrate on this model and set calibration, or set tokens.static_kv=reuse",
            )
        return self.forecast

    def spreads(self) -> dict[int, Spread]:
        """The calibrated test of each segment by its index. Raises UsageError where one is missing."""
        if self.calibration is None or self.config.test != "calibrated":
            return {}
        known = self.calibration.spread
        missing = [key for key in self.keys if key not in known]
        if missing:
            raise UsageError(
                f"{self.config.calibration} has no calibrated test for {missing[0]}", "use test: online, or none"
            )
        return {
            segment.index: Spread.from_dict(known[key]) for segment, key in zip(self.segments, self.keys, strict=True)
        }

    def listeners(self) -> list[Callable[[Sequence[float]], None]]:
        """Who must hear of the noise levels of a request."""
        fitted = [each for each in (*self.stand_ins, self.forecast) if isinstance(each, Fitted | Affine | Forecast)]
        return [each.begin for each in fitted]

    def _begins(self, segment: Segment, key: str) -> bool:
        """Whether what enters the segment is what enters all that it stands for."""
        return self.alone or key.startswith(f"{segment.name}..")
