"""Measures a model: moments on its own trajectories and on cached ones, gains of errors, and the spread of the test."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.approx.fit import Places, fit
from fastcache_xdit.approx.fitted import Coherence, Halves
from fastcache_xdit.approx.forms import FORM, FORMS
from fastcache_xdit.approx.keys_values import SEGMENT, STREAM, KeysValues
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.decision.schedule import uniform_mask
from fastcache_xdit.errors import UsageError
from fastcache_xdit.host.identity import identity
from fastcache_xdit.host.xdit.engine import Batch
from fastcache_xdit.segments.attention import projections
from fastcache_xdit.segments.segment import Segment
from fastcache_xdit.tuning.coherence import TRIED, TRIED_GAPS, best_coherence
from fastcache_xdit.tuning.coverage import HELD_OUT_EVERY, Coverage, is_held_out
from fastcache_xdit.tuning.measured import Measured
from fastcache_xdit.tuning.pairs import Pairs, rms
from fastcache_xdit.tuning.planner import ErrorTable, plan
from fastcache_xdit.tuning.progress import Progress
from fastcache_xdit.tuning.recorder import record
from fastcache_xdit.tuning.runner import Runner, relative_error
from fastcache_xdit.tuning.sums import Sums
from fastcache_xdit.tuning.versions import versions

# Shares of computed steps of the masks that on-policy rounds run under: planned ones, then evenly spaced ones, whose
# long gaps early in a request lead furthest away from the uncached trajectory.
PLANNED, UNIFORM = (0.6, 0.4, 0.25), (0.3, 0.15)
PROBE_EVERY = 2  # steps between single-skip probes; gains in between are interpolated

Report = Callable[[str, int, int], None]  # (what, parts done, parts in all)


class Calibrator:
    """One calibration, part by part; what is done survives an interruption in files beside `output`.

    Args:
        runner: the model; its call has the number of steps to calibrate at.
        batches: prompts, at least `HELD_OUT_EVERY` batches.
        output: where the calibration will be written.
        coverage: what it shall serve.
        facts: how it is measured, for the file; a calibration with other facts is not continued.
    """

    def __init__(
        self, runner: Runner, batches: Sequence[Batch], output: Path, coverage: Coverage, facts: dict[str, Any]
    ) -> None:
        self.runner = runner
        self.batches = batches
        self.lead = max(coverage.leads)
        self.segments = coverage.segments(runner.blocks)
        self.main = Segment(0, tuple(runner.blocks[self.lead :])).key
        self.identity = identity(runner.host)
        self.facts = {**facts, "steps": self.steps, "coverage": asdict(coverage)}
        self.progress = Progress(output)
        self.sums = Sums(with_covariances=coverage.maps)
        self.measured = Measured()
        self._latest: Calibration | None = None
        self._truths: dict[int, torch.Tensor] = {}

    @property
    def steps(self) -> int:
        """Number of inference steps."""
        return self.runner.call["num_inference_steps"]

    def run(self, report: Report) -> Calibration:
        """Carry out all parts that are not done yet; every rank must call it."""
        parts = self._parts()
        self._restore()
        for number, (what, part) in enumerate(parts, start=1):
            if number > self.measured.done:
                part()
                self.measured.done = number
                self._save()
            report(what, number, len(parts))
        calibration = self._calibration(best_coherence(self.measured.tried))
        calibration.maps = self.sums.maps()
        gains = self.measured.all_gains(self.steps)
        calibration.gains = {segment.key: gains for segment in self.segments}
        calibration.spread = {self.main: self.measured.spread(self.steps).to_dict()}
        calibration.facts["fit_error"] = {key: _error_at_half(streams) for key, streams in calibration.moments.items()}
        self.progress.clear()
        return calibration

    def _parts(self) -> list[tuple[str, Callable[[], None]]]:
        count = len(self.batches)
        parts: list[tuple[str, Callable[[], None]]] = [
            ("recording", partial(self._round, "1" * self.steps, index)) for index in range(count)
        ]
        rounds = [(share, self._planned) for share in PLANNED] + [(share, self._even) for share in UNIFORM]
        for share, mask_of in rounds:
            what = f"refitting at {share:.0%} computed"
            parts += [(what, partial(self._on_policy, mask_of, share, index)) for index in range(count)]
        judging = [index for index in range(count) if is_held_out(index)]
        parts += [
            ("adding up errors", partial(self._try_coherence, gap, index)) for gap in TRIED_GAPS for index in judging
        ]
        probed = range(2, self.steps, PROBE_EVERY)
        parts += [("probing single skips", partial(self._probe, step)) for step in probed]
        return [*parts, ("measuring rounding", self._measure_noise)]

    def _on_policy(self, mask_of: Callable[[Calibration, int], str], share: float, index: int) -> None:
        """One batch on the trajectory that the fits so far lead to; the round's first batch makes its mask."""
        if index == 0 or not self._latest:
            self.measured.mask = mask_of(self._fit(), max(2, round(share * self.steps)))
        self._round(self.measured.mask, index)

    def _planned(self, calibration: Calibration, computed: int) -> str:
        table = ErrorTable(FORM, calibration.moments[self.main]["hidden_states"])
        return plan(table, [1.0] * self.steps, computed).mask

    def _even(self, calibration: Calibration, computed: int) -> str:
        return uniform_mask(self.steps, computed)

    def _round(self, mask: str, index: int) -> None:
        """Generate a batch under a mask, every block computed all the same, and add what is seen to the sums."""
        pairs = Pairs() if "0" in mask else None
        recorder = record(
            self.runner, self.batches[index], self._config(mask), self._fitted(mask), self.segments, pairs
        )
        self.measured.sigmas = self.runner.sigmas()
        self.sums.add(recorder, self.measured.sigmas, is_held_out(index))
        if pairs and is_held_out(index):
            self.measured.pairs += pairs.collected()

    def _try_coherence(self, gap: int, index: int) -> None:
        """Errors of a held-out batch's final latents, computing every `gap`-th step, for each way to add up errors."""
        mask = "".join("0" if step % gap else "1" for step in range(self.steps))
        fitted, errors = self._fit(), []
        for length, floor in TRIED:
            tried = replace(fitted, coherence=(Coherence(math.inf, length, floor),))
            with self.runner.enabled(self._config(mask), tried) as cached:
                latents = cached.generate(self.batches[index])
            errors.append(relative_error(latents, self._truth(index)).log().tolist())
        self.measured.tried.setdefault(gap, []).extend(np.array(errors).T.tolist())

    def _probe(self, step: int) -> None:
        """Skip one step alone: by how much its relative error grows or fades until the final latents."""
        if not self.measured.gains or not self._latest:
            self._fit()
        index, pairs = HELD_OUT_EVERY - 1, Pairs()
        mask = "".join("0" if each == step else "1" for each in range(self.steps))
        with self.runner.enabled(self._config(mask), self._fitted(mask), pairs) as cached:
            latents = cached.generate(self.batches[index])
        local = rms([pair.error for pair in pairs.collected() if pair.step == step])
        self.measured.gains[step] = rms(relative_error(latents, self._truth(index)).tolist()) / local

    def _measure_noise(self) -> None:
        """How far the final latents of the same prompts differ at other places in the batch, by rounding alone."""
        index = HELD_OUT_EVERY - 1
        turned = self.runner.uncached(self.batches[index][::-1])
        self.measured.noise = rms(relative_error(turned.flip(0), self._truth(index)).tolist())

    def _truth(self, index: int) -> torch.Tensor:
        if index not in self._truths:
            self._truths[index] = self.runner.uncached(self.batches[index])
        return self._truths[index]

    def _config(self, mask: str) -> FastCacheConfig:
        stand_in = {"stand_in": FORM} if "0" in mask else {}
        return FastCacheConfig.scheduled(mask, lead_blocks=self.lead, **stand_in)

    def _fitted(self, mask: str) -> Calibration | None:
        """What the skips of a mask are replaced by: the latest fits."""
        return self._latest if "0" in mask else None

    def _fit(self) -> Calibration:
        """Fit anew to what is known so far, as it would be saved; every rank must call it."""
        self._latest = self._calibration(best_coherence(self.measured.tried)).as_saved()
        self.progress.keep(self._latest)
        return self._latest

    def _calibration(self, coherence: tuple[Coherence, ...]) -> Calibration:
        """Sums of all ranks so far."""
        moments = self.sums.moments(self.measured.sigmas)
        projected = moments.pop(SEGMENT, None)
        layers = tuple(dict(projections(self.segments)))
        return Calibration(
            self.identity,
            {**self.facts, **versions()},
            tuple(self.measured.sigmas),
            moments,
            coherence=coherence,
            keys_values=KeysValues(layers, projected[STREAM]) if projected else None,
        )

    def _save(self) -> None:
        self.progress.save({"facts": self.facts, **self.measured.to_dict()}, self.sums.tensors())

    def _restore(self) -> None:
        saved = self.progress.load()
        if saved is None:
            return
        state, tensors = saved
        if state.pop("facts") != json.loads(json.dumps(self.facts)):
            raise UsageError(
                f"{self.progress.path} is of an interrupted calibration with other options",
                "repeat those, or delete the file",
            )
        self.measured = Measured.from_dict(state)
        self.sums.restore(tensors, self.measured.sigmas)
        self._latest = self.progress.kept()


def _error_at_half(streams: dict[str, Halves]) -> dict[str, float]:
    """For a file's reader: the fitted stand-in's relative error where every other step is computed, by stream."""
    errors = {}
    for stream, (training, held_out) in streams.items():
        steps = torch.arange(5, training.steps, 2)
        places = Places(steps, steps[:, None] - torch.tensor([[1, 3, 5]]))
        errors[stream] = rms(fit(FORMS[FORM], training, held_out, places).relative_error.tolist())
    return errors
