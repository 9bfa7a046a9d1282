"""Measures a model: moments on its own trajectories and on cached ones, gains of errors, and the spread of the test."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from scipy.stats import trim_mean, wilcoxon

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.approx.fit import Places, fit
from fastcache_xdit.approx.fitted import Coherence, Halves
from fastcache_xdit.approx.forms import FORMS
from fastcache_xdit.approx.keys_values import SEGMENT, STREAM, KeysValues
from fastcache_xdit.approx.maps import Covariances, Maps, fit_maps
from fastcache_xdit.approx.moments import Moments
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.decision.schedule import uniform_mask
from fastcache_xdit.decision.significance import Spread
from fastcache_xdit.errors import UsageError
from fastcache_xdit.host.identity import identity
from fastcache_xdit.host.xdit import world
from fastcache_xdit.host.xdit.engine import Batch
from fastcache_xdit.models.catalogue import spec_for
from fastcache_xdit.segments.attention import projections
from fastcache_xdit.segments.segment import Block, Segment, segments_of
from fastcache_xdit.tuning.planner import ErrorTable, plan
from fastcache_xdit.tuning.recorder import recorded
from fastcache_xdit.tuning.runner import Runner, relative_error
from fastcache_xdit.tuning.witness import Pair, Pairs, fit_spread, rms

FORM = "delta+history"
# Shares of computed steps of the masks that on-policy rounds run under: planned ones, then evenly spaced ones, whose
# long gaps early in a request lead furthest away from the uncached trajectory.
PLANNED, UNIFORM = (0.6, 0.4, 0.25), (0.3, 0.15)
HELD_OUT_EVERY = 3  # batches: the last of each so many judges the fits of the others
# Ways to add up errors (length, floor), each tried on final latents under even masks with these gaps between computed
# steps; on-policy rounds, which come before, guess.
TRIED_GAPS = (2, 3, 4, 6)
TRIED = ((0.0, 0.0), *((length, floor) for length in (0.15, 0.3, 1.0) for floor in (1e-3, 1e-2)))
GUESSED = Coherence(math.inf, 0.3, 1e-2)
TRIMMED = 0.125  # share of images left out at either end: a few tip over into another picture
SURE = 0.05  # chance that a way seems better than none and is not
PROBE_EVERY = 2  # steps between single-skip probes; gains in between are interpolated
# What lets a schedule alone decide.
SCHEDULED = {
    "test": "none",
    "warmup_steps": 1,
    "cooldown_steps": 0,
    "max_consecutive_skips": 1000,
    "error_budget": 1e9,
}

Progress = Callable[[str, int, int], None]  # (what, parts done, parts in all)
ByStream = dict[str, dict[str, Moments]]


@dataclass(frozen=True)
class Coverage:
    """What a calibration shall serve: numbers of lead blocks, and a granularity beside `step`.

    `stages` are PipeFusion degrees whose stages skip each for itself; where they skip together, they are served by what
    serves one process. `maps` asks for whole matrices for `affine`, which takes [D, D] sums for each segment.
    """

    leads: tuple[int, ...] = (0, 1)
    stages: tuple[int, ...] = ()
    granularity: str = "step"
    groups: int = 4
    maps: bool = False

    def segments(self, blocks: Sequence[Block]) -> list[Segment]:
        """Every segment to calibrate, each once."""
        stacks = [blocks[first : last + 1] for first, last in spans(len(blocks), self.leads, self.stages)]
        found = [Segment(0, tuple(stack)) for stack in stacks]
        found += [segment for stack in stacks for segment in segments_of(stack, self.granularity, self.groups)]
        return list({segment.key: segment for segment in found}.values())


def spans(count: int, leads: Sequence[int], stages: Sequence[int]) -> list[tuple[int, int]]:
    """(first, last) block of every segment to calibrate: what `granularity: step` skips, by lead blocks, whole and by
    stages.

    xDiT gives each of n PipeFusion stages ceil(count / n) blocks.
    """
    found = set()
    for number in {1, *stages}:
        size = -(-count // number)
        starts = [(start, min(start + size, count) - 1) for start in range(0, count, size)]
        found |= {(max(start, lead), last) for lead in leads for start, last in starts}
    return sorted(span for span in found if span[0] <= span[1])


def check_enough(prompts: int, batch_size: int) -> None:
    """Raise UsageError where no whole batch would be held out to judge the fits."""
    needed = HELD_OUT_EVERY * batch_size
    if prompts < needed:
        raise UsageError(
            f"{prompts} prompts in batches of {batch_size} are too few: one batch in {HELD_OUT_EVERY} "
            f"is held out, so give at least {needed} prompts or a smaller --batch_size"
        )


def best_way(errors: np.ndarray) -> int:
    """The way of `TRIED` with the least error, where it is significantly less than that of the first: else the first.

    Args:
        errors: [images, ways], logarithms; each image is compared with itself.
    """
    gains = errors[:, :1] - errors
    best = int(trim_mean(gains, TRIMMED).argmax())
    return best if best and wilcoxon(gains[:, best], alternative="greater").pvalue < SURE else 0


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
        self.coverage = coverage
        self.lead = max(coverage.leads)
        host, blocks = runner.host, runner.blocks
        self.segments = coverage.segments(blocks)
        self.main = Segment(0, tuple(blocks[self.lead :])).key
        self.identity = identity(host, spec_for(host.model))
        self.facts = {**facts, "steps": self.steps, "coverage": asdict(coverage)}
        self.working = Path(f"{output}.working")
        self.saved = Path(f"{output}.progress.{world.rank()}")
        self.sigmas: list[float] = []
        self.sums: dict[str, ByStream] = {half: {} for half in Halves._fields}
        self.covariances: dict[str, dict[str, dict[str, Covariances]]] = {half: {} for half in Halves._fields}
        self.pairs: list[Pair] = []
        self.gains: dict[int, float] = {}
        self.noise = 0.0
        self.mask = ""
        self.done = 0
        self.tried: dict[int, list[list[float]]] = {}
        self._truths: dict[int, torch.Tensor] = {}

    @property
    def steps(self) -> int:
        """Number of inference steps."""
        return self.runner.call["num_inference_steps"]

    def run(self, progress: Progress) -> Calibration:
        """All parts that are not done yet; every rank must call it."""
        parts = self._parts()
        self._restore()
        for number, (what, part) in enumerate(parts, start=1):
            if number > self.done:
                part()
                self.done = number
                self._save()
            progress(what, number, len(parts))
        calibration = self._calibration(self._coherence())
        calibration.maps = self._maps()
        calibration.gains = {segment.key: self._all_gains() for segment in self.segments}
        calibration.spread = {self.main: self._spread().to_dict()}
        calibration.facts["fit_error"] = {key: _error_at_half(each) for key, each in calibration.moments.items()}
        self.saved.unlink(missing_ok=True)
        world.barrier()
        self.working.unlink(missing_ok=True)
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
        judged = range(HELD_OUT_EVERY - 1, count, HELD_OUT_EVERY)
        parts += [
            ("adding up errors", partial(self._try_coherence, gap, index)) for gap in TRIED_GAPS for index in judged
        ]
        probed = range(2, self.steps, PROBE_EVERY)
        parts += [("probing single skips", partial(self._probe, step)) for step in probed]
        return [*parts, ("measuring rounding", self._measure_noise)]

    def _on_policy(self, mask_of: Callable[[Calibration, int], str], share: float, index: int) -> None:
        """One batch on the trajectory that the fits so far lead to; the round's first batch makes its mask."""
        if index == 0 or not self.working.exists():
            self.mask = mask_of(self._publish(), max(2, round(share * self.steps)))
        self._round(self.mask, index)

    def _planned(self, calibration: Calibration, computed: int) -> str:
        return plan(
            ErrorTable(FORM, calibration.moments[self.main]["hidden_states"]), [1.0] * self.steps, computed
        ).mask

    def _even(self, calibration: Calibration, computed: int) -> str:
        return uniform_mask(self.steps, computed)

    def _round(self, mask: str, index: int) -> None:
        """Generate a batch under a mask, every block computed all the same, and add what is seen to the sums."""
        held_out = index % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
        pairs = Pairs()
        witness = pairs if "0" in mask else None
        recorder = recorded(self.runner, self.batches[index], self._config(mask), self.segments, witness)
        self.sigmas = self.runner.sigmas()
        half = "held_out" if held_out else "training"
        recorder.add_to(self.sums[half], self.sigmas)
        if self.coverage.maps:
            recorder.add_to_covariances(self.covariances[half], self.steps)
        if held_out:
            self.pairs += pairs.collected()

    def _try_coherence(self, gap: int, index: int) -> None:
        """Errors of a held-out batch's final latents, computing every `gap`-th step, for each way to add up errors."""
        mask = "".join("0" if step % gap else "1" for step in range(self.steps))
        errors = []
        for length, floor in TRIED:
            self._publish((Coherence(math.inf, length, floor),))
            with self.runner.enabled(self._config(mask)) as watched:
                latents = watched.generate(self.batches[index])
            errors.append(relative_error(latents, self._truth(index)).log().tolist())
        self.tried.setdefault(gap, []).extend(np.array(errors).T.tolist())

    def _coherence(self) -> tuple[Coherence, ...]:
        """For each gap what `best_way` says."""
        if not self.tried:
            return (GUESSED,)
        reaches = [*(2.0 * gap - 1 for gap in sorted(self.tried)[:-1]), math.inf]
        best = [best_way(np.array(self.tried[gap])) for gap in sorted(self.tried)]
        return tuple(Coherence(reach, *TRIED[way]) for reach, way in zip(reaches, best, strict=True))

    def _probe(self, step: int) -> None:
        """Skip one step alone: by how much its relative error grows or fades until the final latents."""
        if not self.gains or not self.working.exists():
            self._publish()
        index, pairs = HELD_OUT_EVERY - 1, Pairs()
        mask = "".join("0" if each == step else "1" for each in range(self.steps))
        with self.runner.enabled(self._config(mask)) as watched:
            watched.handle.driver.witness = pairs
            latents = watched.generate(self.batches[index])
        local = rms([pair.error for pair in pairs.collected() if pair.step == step])
        self.gains[step] = rms(relative_error(latents, self._truth(index)).tolist()) / local

    def _measure_noise(self) -> None:
        """How far the final latents of the same prompts differ at other places in the batch, by rounding alone."""
        index = HELD_OUT_EVERY - 1
        turned = self.runner.uncached(self.batches[index][::-1])
        self.noise = rms(relative_error(turned.flip(0), self._truth(index)).tolist())

    def _truth(self, index: int) -> torch.Tensor:
        if index not in self._truths:
            self._truths[index] = self.runner.uncached(self.batches[index])
        return self._truths[index]

    def _config(self, mask: str) -> FastCacheConfig:
        fitted = {"calibration": str(self.working), "stand_in": FORM} if "0" in mask else {}
        return FastCacheConfig(**SCHEDULED, **fitted, schedule={self.steps: mask}, lead_blocks=self.lead)

    def _publish(self, coherence: tuple[Coherence, ...] | None = None) -> Calibration:
        """What is known so far, as a file that the ranks' caches load."""
        calibration = self._calibration(coherence or self._coherence())
        if world.rank() == 0:
            calibration.save(self.working)
        world.barrier()
        return calibration

    def _calibration(self, coherence: tuple[Coherence, ...]) -> Calibration:
        """Sums of all ranks so far."""
        moments: dict[str, dict[str, Halves]] = {}
        for segment, streams in sorted(self.sums["training"].items()):
            for stream in sorted(streams):
                halves = (self.sums[half][segment][stream].gram for half in Halves._fields)
                summed = Halves(*(Moments(self.sigmas, world.sum_over_ranks(gram)) for gram in halves))
                moments.setdefault(segment, {})[stream] = summed
        projected = moments.pop(SEGMENT, None)
        layers = tuple(dict(projections(self.segments)))
        return Calibration(
            self.identity,
            {**self.facts, **versions()},
            tuple(self.sigmas),
            moments,
            coherence=coherence,
            keys_values=KeysValues(layers, projected[STREAM]) if projected else None,
        )

    def _maps(self) -> dict[str, dict[str, Maps]]:
        """Fitted from the sums of all ranks."""
        found: dict[str, dict[str, Maps]] = {}
        for segment, streams in sorted(self.covariances["training"].items()):
            for stream in sorted(streams):
                sums = (self.covariances[half][segment][stream] for half in Halves._fields)
                training, held_out = (Covariances(*map(world.sum_over_ranks, each)) for each in sums)
                found.setdefault(segment, {})[stream] = fit_maps(training, held_out)
        return found

    def _spread(self) -> Spread:
        return replace(fit_spread(self.pairs, self._all_gains(), self.sigmas), noise=self.noise)

    def _all_gains(self) -> list[float]:
        steps = sorted(self.gains)
        logarithms = np.interp(range(self.steps), steps, np.log([self.gains[step] for step in steps]))
        return np.exp(logarithms).tolist()

    def _save(self) -> None:
        tensors = {
            f"{half}/{segment}/{stream}": moments.gram
            for half, segments in self.sums.items()
            for segment, streams in segments.items()
            for stream, moments in streams.items()
        }
        tensors |= {
            f"{half}/{segment}/{stream}/{name}": sums
            for half, segments in self.covariances.items()
            for segment, streams in segments.items()
            for stream, covariances in streams.items()
            for name, sums in covariances._asdict().items()
        }
        state = {
            "facts": self.facts,
            "done": self.done,
            "levels": self.sigmas,
            "pairs": self.pairs,
            "gains": self.gains,
            "mask": self.mask,
            "tried": self.tried,
            "noise": self.noise,
        }
        partial = Path(f"{self.saved}.partial")
        partial.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, partial, {"state": json.dumps(state)})
        partial.replace(self.saved)

    def _restore(self) -> None:
        if not self.saved.exists():
            return
        with safe_open(self.saved, framework="pt") as file:
            state = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        if state["facts"] != json.loads(json.dumps(self.facts)):
            raise UsageError(
                f"{self.saved} is of an interrupted calibration with other options", "repeat those, or delete the file"
            )
        self.done, self.sigmas, self.mask = state["done"], state["levels"], state["mask"]
        self.tried = {int(gap): errors for gap, errors in state["tried"].items()}
        self.noise = state["noise"]
        self.pairs = [Pair(*values) for values in state["pairs"]]
        self.gains = {int(step): gain for step, gain in state["gains"].items()}
        for name in tensors:
            half, segment, stream, *what = name.split("/")
            if not what:
                self.sums[half].setdefault(segment, {})[stream] = Moments(self.sigmas, tensors[name])
            elif what == ["rows"]:
                parts = (tensors[f"{half}/{segment}/{stream}/{field}"] for field in Covariances._fields)
                self.covariances[half].setdefault(segment, {})[stream] = Covariances(*parts)


def versions() -> dict[str, str]:
    """Versions of what a measurement depends on."""
    packages = ("torch", "diffusers", "xfuser", "fastcache_xdit")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def _error_at_half(streams: dict[str, Halves]) -> dict[str, float]:
    """For a file's reader: the fitted stand-in's relative error where every other step is computed, by stream."""
    errors = {}
    for stream, (training, held_out) in streams.items():
        steps = torch.arange(5, training.steps, 2)
        places = Places(steps, steps[:, None] - torch.tensor([[1, 3, 5]]))
        errors[stream] = rms(fit(FORMS[FORM], training, held_out, places).relative_error.tolist())
    return errors
