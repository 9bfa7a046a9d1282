"""Calibrates a model: moments with and without the cache, gains of errors, and the statistics of the test."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.approx.coherence import Coherence
from fastcache_xdit.approx.forms import FORM
from fastcache_xdit.approx.keys_values import SEGMENT, STREAM, KeysValues
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.decision.schedule import uniform_mask
from fastcache_xdit.errors import UsageError
from fastcache_xdit.host.identity import identity
from fastcache_xdit.segments.attention import projections
from fastcache_xdit.segments.segment import Segment
from fastcache_xdit.tuning.calls import Call
from fastcache_xdit.tuning.coherence import TRIED, TRIED_GAPS, best_coherence
from fastcache_xdit.tuning.coverage import HELD_OUT_EVERY, LEAST_STEPS, Coverage, is_held_out
from fastcache_xdit.tuning.fits import error_at_half, planned_mask
from fastcache_xdit.tuning.measured import Measured
from fastcache_xdit.tuning.pairs import Pairs, rms
from fastcache_xdit.tuning.progress import Progress
from fastcache_xdit.tuning.recorder import record
from fastcache_xdit.tuning.runner import Runner, relative_error
from fastcache_xdit.tuning.sums import Sums
from fastcache_xdit.tuning.versions import versions

# Fractions of computed steps in the masks of on-policy rounds: first planned masks, then evenly spaced ones, whose long
# gaps early in a request lead furthest away from the uncached trajectory.
PLANNED, UNIFORM = (0.6, 0.4, 0.25), (0.3, 0.15)
PROBE_EVERY = 2  # steps between probes that skip a single step; gains in between are interpolated

ReportPart = Callable[[str, int, int], None]  # (name of the part, parts done, number of parts)


class Calibrator:
    """Measures one calibration, part by part; an interrupted one continues from files beside `output`.

    Args:
        runner: the model.
        calls: what to measure on, all of the number of steps to calibrate; at least `HELD_OUT_EVERY`.
        output: where the calibration will be written; None for one that is not, and cannot be continued.
        coverage: the segments to calibrate.
        facts: how it is measured, for the file; a calibration with other facts is not continued.
    """

    def __init__(
        self, runner: Runner, calls: Sequence[Call], output: Path | None, coverage: Coverage, facts: dict[str, Any]
    ) -> None:
        self.runner = runner
        self.calls = calls
        self.output = output
        self.steps = 0  # known once a call has run
        self.lead = max(coverage.leads)
        self.segments = coverage.segments(runner.blocks)
        self.main = Segment(0, tuple(runner.blocks[self.lead :])).key
        self.identity = identity(runner.host)
        self.facts = {**facts, "coverage": asdict(coverage)}
        self.progress = Progress(None, facts)
        self.sums = Sums(with_covariances=coverage.maps)
        self.measured = Measured()
        self._latest: Calibration | None = None
        self._references: dict[int, torch.Tensor] = {}

    def run(self, report: ReportPart) -> Calibration:
        """Run all parts that are not done yet and return the calibration; every rank must call it.

        Raises:
            UsageError: the interrupted calibration beside `output` was made with other options, or steps are too few.
        """
        self._begin()
        parts = self._parts()
        for number, (name, part) in enumerate(parts, start=1):
            if number > self.measured.done:
                part()
                self.measured.done = number
                self.progress.save(self.measured.to_dict(), self.sums.tensors())
            report(name, number, len(parts))
        calibration = self._calibration()
        calibration.maps = self.sums.maps()
        gains = self.measured.all_gains(self.steps)
        calibration.gains = {segment.key: gains for segment in self.segments}
        calibration.spread = {self.main: self.measured.spread(self.steps).to_dict()}
        calibration.facts["guidance"] = self.measured.guidance
        calibration.facts["fit_error"] = {key: error_at_half(streams) for key, streams in calibration.moments.items()}
        self.progress.clear()
        return calibration

    def _begin(self) -> None:
        """Run the call that the last parts refer to, which shows how many steps a request takes; go on from there."""
        self._reference(HELD_OUT_EVERY - 1)
        self.steps = len(self.runner.sigmas())
        if self.steps < LEAST_STEPS:
            raise UsageError(f"{self.steps} steps are too few to calibrate", f"take at least {LEAST_STEPS}")
        self.facts["steps"] = self.steps
        self.progress = Progress(self.output, self.facts)
        saved = self.progress.load()
        if saved:
            self.measured = Measured.from_dict(saved[0])
            self.sums.restore(saved[1], self.measured.sigmas)
            self._latest = self.progress.load_fits()

    def _parts(self) -> list[tuple[str, Callable[[], None]]]:
        count = len(self.calls)
        parts: list[tuple[str, Callable[[], None]]] = [
            ("recording", partial(self._round, "1" * self.steps, index)) for index in range(count)
        ]
        rounds = [(fraction, True) for fraction in PLANNED] + [(fraction, False) for fraction in UNIFORM]
        for fraction, planned in rounds:
            name = f"refitting at {fraction:.0%} computed"
            parts += [(name, partial(self._on_policy, planned, fraction, index)) for index in range(count)]
        held_out = [index for index in range(count) if is_held_out(index)]
        attempts = [partial(self._try_coherence, gap, index) for gap in TRIED_GAPS for index in held_out]
        parts += [("adding up errors", attempt) for attempt in attempts]
        probed = range(2, self.steps, PROBE_EVERY)
        parts += [("probing single skips", partial(self._probe, step)) for step in probed]
        return [*parts, ("measuring rounding", self._measure_noise)]

    def _on_policy(self, planned: bool, fraction: float, index: int) -> None:
        """Record a call on the trajectory of the fits so far; the first one of a round makes its mask."""
        if index == 0 or not self._latest:
            halves, computed = self._fit().moments[self.main]["hidden_states"], max(2, round(fraction * self.steps))
            self.measured.mask = planned_mask(halves, computed) if planned else uniform_mask(self.steps, computed)
        self._round(self.measured.mask, index)

    def _round(self, mask: str, index: int) -> None:
        """Run a call under a mask, with skipped blocks running as well, and add its states to the sums."""
        pairs = Pairs() if "0" in mask else None
        recorder = record(self.runner, self.calls[index], self._config(mask), self._fitted(mask), self.segments, pairs)
        self.measured.sigmas = self.runner.sigmas()
        self.measured.guidance = [found.to_dict() for found in dict.fromkeys(recorder.combinations.values())]
        self.sums.add(recorder, self.measured.sigmas, is_held_out(index))
        if pairs and is_held_out(index):
            self.measured.pairs += pairs.collected()

    def _try_coherence(self, gap: int, index: int) -> None:
        """Measure the final latents of a held-out call with each of `TRIED`, computing every `gap`-th step."""
        mask = "".join("0" if step % gap else "1" for step in range(self.steps))
        calibration, errors = self._fit(), []
        for length, floor in TRIED:
            candidate = replace(calibration, coherence=(Coherence(math.inf, length, floor),))
            with self.runner.enabled(self._config(mask), candidate) as generate:
                latents = generate(self.calls[index])
            errors.append(relative_error(latents, self._reference(index)).log().tolist())
        self.measured.tried.setdefault(gap, []).extend(np.array(errors).T.tolist())

    def _probe(self, step: int) -> None:
        """Skip a single step, and measure by how much its relative error grows or fades until the final latents."""
        if not self.measured.gains or not self._latest:
            self._fit()
        index, pairs = HELD_OUT_EVERY - 1, Pairs()
        mask = "".join("0" if other == step else "1" for other in range(self.steps))
        with self.runner.enabled(self._config(mask), self._fitted(mask), pairs) as generate:
            latents = generate(self.calls[index])
        local = rms([pair.error for pair in pairs.collected() if pair.step == step])
        self.measured.gains[step] = rms(relative_error(latents, self._reference(index)).tolist()) / local

    def _measure_noise(self) -> None:
        """Measure by how much the final latents differ if samples change places in the batch: rounding alone."""
        index = HELD_OUT_EVERY - 1
        reordered = self.runner.reordered(self.calls[index])
        self.measured.noise = rms(relative_error(reordered, self._reference(index)).tolist())

    def _reference(self, index: int) -> torch.Tensor:
        """Return the uncached final latents of a call."""
        if index not in self._references:
            self._references[index] = self.runner.uncached(self.calls[index])
        return self._references[index]

    def _config(self, mask: str) -> FastCacheConfig:
        stand_in = {"stand_in": FORM} if "0" in mask else {}
        return FastCacheConfig.scheduled(mask, lead_blocks=self.lead, **stand_in)

    def _fitted(self, mask: str) -> Calibration | None:
        """Return the latest fits, which replace the skipped steps of a mask; None if it skips none."""
        return self._latest if "0" in mask else None

    def _fit(self) -> Calibration:
        """Return a calibration of the sums so far, as it would be loaded from a file; every rank must call it."""
        self._latest = self._calibration().as_saved()
        self.progress.save_fits(self._latest)
        return self._latest

    def _calibration(self) -> Calibration:
        """Return a calibration of the sums of all ranks so far; every rank must call it."""
        moments = self.sums.moments(self.measured.sigmas)
        keys_values = moments.pop(SEGMENT, None)
        layers = tuple(dict(projections(self.segments)))
        return Calibration(
            self.identity,
            {**self.facts, **versions()},
            tuple(self.measured.sigmas),
            moments,
            coherence=best_coherence(self.measured.tried),
            keys_values=KeysValues(layers, keys_values[STREAM]) if keys_values else None,
        )
