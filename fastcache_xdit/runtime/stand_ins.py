"""The stand-ins of a rank's segments, from a calibration or without one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.approx.fitted import Fitted
from fastcache_xdit.approx.keys_values import KeysValuesForecast
from fastcache_xdit.approx.linear import StandIn, unfitted
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.decision.significance import Spread
from fastcache_xdit.errors import UsageError
from fastcache_xdit.segments.attention import projections
from fastcache_xdit.segments.segment import Segment


@dataclass(frozen=True)
class StandIns:
    """The segments of one rank and their stand-ins.

    Attributes:
        config: the options.
        segments: the segments of this rank.
        keys: for each segment, its key in the calibration. PipeFusion stages that skip together all use the key of the
            segment that they form together.
        runs_ahead: whether the last PipeFusion stage runs skipped steps alone, replacing the blocks of all stages.
        idle: whether another stage does that, so that the stand-ins of this one are never used.
        calibration: None for stand-ins that are not fitted.
    """

    config: FastCacheConfig
    segments: Sequence[Segment]
    keys: Sequence[str]
    runs_ahead: bool
    idle: bool
    calibration: Calibration | None

    @cached_property
    def by_segment(self) -> Sequence[StandIn]:
        """One stand-in for each segment.

        Raises:
            UsageError: the calibration lacks a segment.
        """
        name, rank = self.config.stand_in, self.config.affine_rank
        if self.calibration is None or self.idle:
            return [unfitted("reuse" if self.idle else name) for _ in self.segments]
        if name == "affine" and rank:
            keys = self.keys if self.runs_ahead else [segment.key for segment in self.segments]
            return [self.calibration.affine(key, rank) for key in keys]
        carry_errors = self.config.test == "none"  # with a test, each request skips other steps and would need own fits
        return [
            self.calibration.stand_in(key, name, carry_errors, follows=not self._starts(segment, key))
            for segment, key in zip(self.segments, self.keys, strict=True)
        ]

    @cached_property
    def forecast(self) -> KeysValuesForecast | None:
        """The extrapolation of keys and values from earlier steps; None if the calibration has none."""
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

    @cached_property
    def _fitted(self) -> Sequence[Fitted]:
        """One for each key of the calibration: those of the same key share what was solved."""
        fitted = {each.segment: each for each in self.by_segment if isinstance(each, Fitted)}
        return list(fitted.values())

    def bytes_held(self) -> int:
        """Return the bytes of what was solved, beside the calibration."""
        return sum(each.bytes_held() for each in self._fitted)

    def release(self) -> None:
        """Forget what solving needs, and keep what was solved."""
        for each in self._fitted:
            each.release()

    def static_forecast(self) -> KeysValuesForecast | None:
        """Return the forecast of the keys and values of static tokens; None unless `tokens.static_kv` is `forecast`.

        Raises:
            UsageError: it is, and the calibration lacks a layer.
        """
        if not self.config.tokens or self.config.tokens.static_kv != "forecast":
            return None
        names = [name for name, _ in projections(self.segments)]
        missing = [name for name in names if not (self.forecast and self.forecast.knows(name))]
        if missing:
            raise UsageError(
                "tokens.static_kv=forecast needs a calibration that has the keys and values of the model: "
                + ("there is none" if not self.forecast else f"the given one lacks {missing[0]}"),
                "run fastcache-xdit calibrate on this model and set calibration, or set tokens.static_kv=reuse",
            )
        return self.forecast

    def spreads(self) -> dict[int, Spread]:
        """Return the data of the calibrated test by segment index; nothing for other tests.

        Raises:
            UsageError: the calibration has no test for a segment.
        """
        if self.calibration is None or self.config.test != "calibrated":
            return {}
        spread = self.calibration.spread
        missing = [key for key in self.keys if key not in spread]
        if missing:
            raise UsageError(
                f"{self.config.calibration or 'the calibration'} has no calibrated test for {missing[0]}",
                "use test: plan, or none",
            )
        pairs = zip(self.segments, self.keys, strict=True)
        return {segment.index: Spread.from_dict(spread[key]) for segment, key in pairs}

    def _starts(self, segment: Segment, key: str) -> bool:
        """Return whether the input of this segment is also the input of the calibrated segment `key`."""
        return self.runs_ahead or key.startswith(f"{segment.name}..")
