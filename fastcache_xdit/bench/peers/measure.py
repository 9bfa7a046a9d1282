"""Runs caches one setting at a time on the same weights, prompts, seeds and schedule, and measures each alike."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fastcache_xdit.bench.peers.peer import Peer, Setting, Site
from fastcache_xdit.bench.peers.score import Scores, score
from fastcache_xdit.bench.peers.site import Place, Tape
from fastcache_xdit.evaluate.flops import counted, counted_steps
from fastcache_xdit.host.find import host_of
from fastcache_xdit.host.xdit import world
from fastcache_xdit.host.xdit.engine import Batch
from fastcache_xdit.plugin import repaired

RAN, NOTHING, REFUSED, CRASHED, LEFT_OUT = "ran", "did nothing", "refused", "crashed", "left out"
DECIDES_APART = "hooks one process's transformer: under parallelism its ranks would decide apart, and hang"


@dataclass(frozen=True)
class Plan:
    """What is run: prompts in batches, the few that are timed, and how often; `rehearsal` is never measured.

    `scored`: pictures are judged as well, which those of random weights are not.
    """

    batches: Sequence[Batch]
    timed: Batch
    rehearsal: Batch
    repetitions: int
    call: dict[str, Any]
    scored: bool = True

    @property
    def steps(self) -> int:
        """Denoising steps of a request."""
        return self.call["num_inference_steps"]


@dataclass
class Sample:
    """All prompts in one kind: pictures [N, 3, H, W], latents, FLOPs of each step of the first batch, and its tape.

    `outside`: those of the steps that are outside the blocks, where uncached steps have as many.
    """

    pictures: torch.Tensor
    latents: torch.Tensor | None
    steps: list[int]
    outside: float
    tape: Tape


@dataclass(frozen=True)
class Outcome:
    """One setting of one cache; figures are None where it did not run.

    `compute` is block FLOPs executed over those of the uncached request, `transformer` the same of the whole
    transformer, `steps` the share that each step executed of an uncached step. `speedup` is wall time uncached over
    cached, paired run by run: median, least, most, repetitions. `restored`: uncached requests afterwards gave the same
    bits as before.
    """

    peer: str
    setting: str
    status: str
    error: str = ""
    compute: float | None = None
    transformer: float | None = None
    steps: tuple[float, ...] = ()
    speedup: dict[str, float] | None = None
    restored: bool | None = None
    scores: Scores | None = None
    pictures: torch.Tensor | None = field(default=None, repr=False, compare=False)


class Refusal(Exception):
    """The cache would not be switched on."""


class Bench:
    """One model; `load` gives it anew, which happens whenever a cache failed or left something behind."""

    def __init__(self, load: Callable[[], Place], plan: Plan) -> None:
        self.load, self.plan = load, plan
        self._fresh()
        self._outside = self._outside_blocks()
        self.truth = self._sample(None, None)
        self.timed_truth = self._timed(None, None)[1]

    def measure(self, peer: Peer, setting: Setting) -> Outcome:
        """One setting, whatever becomes of it."""
        if self.place.ranks > 1 and not peer.parallel:
            return Outcome(peer.name, setting.label, LEFT_OUT, DECIDES_APART)
        try:
            return self._measure(peer, setting)
        except Exception as error:  # noqa: BLE001  whatever a cache dies of is its result
            refused = isinstance(error, Refusal)
            cause = error.__cause__ if refused else error
            self._fresh()
            return Outcome(
                peer.name, setting.label, REFUSED if refused else CRASHED, f"{type(cause).__name__}: {cause}"
            )

    def _measure(self, peer: Peer, setting: Setting) -> Outcome:
        sample = self._sample(peer, setting)
        whole, executed = sum(self.truth.steps), sum(sample.steps)
        compute = (executed - sample.outside) / (whole - self.truth.outside)
        same = torch.equal(sample.pictures, self.truth.pictures)
        speedup, restored = self._speedup(peer, setting)
        if not restored:
            self._fresh()
        return Outcome(
            peer.name,
            setting.label,
            NOTHING if same and executed >= whole else RAN,  # what deciding takes is not nothing to count, but no gain
            compute=compute,
            transformer=executed / whole,
            steps=tuple(round(step * len(self.truth.steps) / whole, 4) for step in sample.steps),
            speedup=speedup,
            restored=restored,
            scores=score(self.place.pipe, self.plan.batches, sample, self.truth) if self.plan.scored else None,
            pictures=sample.pictures,
        )

    def _fresh(self) -> None:
        self.place = self.load()
        self.transformer = host_of(self.place.pipe).transformer  # before a cache is on, which a host would refuse
        self.site = Site(
            self.place.pipe, self.plan.steps, lambda: self.place.generate(self.plan.rehearsal, self.plan.call)
        )

    def _outside_blocks(self) -> float:
        """FLOPs of an uncached step on this rank outside the blocks."""
        with self._switched(None, None), counted(self.place.pipe) as blocks, counted_steps(self.transformer) as steps:
            self.place.generate(self.plan.batches[0], self.plan.call)
        return (steps.total() - blocks.total()) / len(steps)

    def _sample(self, peer: Peer | None, setting: Setting | None) -> Sample:
        first, *others = self.plan.batches
        with self._switched(peer, setting) as changes, counted_steps(self.transformer) as steps:
            runs = [self._taped(first, changes)]
        for batch in others:
            with self._switched(peer, setting) as changes:
                runs.append(self._taped(batch, changes))
        latents = [tape.latents for _, tape in runs if tape.latents is not None]
        return Sample(
            pictures=torch.cat([pictures for pictures, _ in runs]),
            latents=torch.cat(latents) if latents else None,
            steps=[flops for _, flops in sorted(sum(world.all_gather_objects(steps), Counter()).items(), reverse=True)],
            outside=sum(world.all_gather_objects(self._outside * len(steps))),
            tape=runs[0][1],
        )

    def _taped(self, batch: Batch, changes: dict[str, Any]) -> tuple[torch.Tensor, Tape]:
        with Tape(self.place.pipe).running(self.plan.scored and self.place.ranks == 1) as tape:
            return self.place.generate(batch, {**self.plan.call, **changes}), tape

    @contextlib.contextmanager
    def _switched(self, peer: Peer | None, setting: Setting | None) -> Iterator[dict[str, Any]]:
        if peer is None or setting is None:
            with repaired(self.place.pipe):
                yield {}
            return
        with contextlib.ExitStack() as stack:
            try:
                changes = stack.enter_context(peer.apply(self.site, **setting.knobs))
            except Exception as error:
                raise Refusal from error
            yield changes

    def _speedup(self, peer: Peer, setting: Setting) -> tuple[dict[str, float], bool]:
        """Wall time without decoding, uncached over cached, pair by pair; and whether uncached gives the same bits."""
        ratios, restored = [], True
        for _ in range(self.plan.repetitions):
            cached, _ = self._timed(peer, setting)
            uncached, latents = self._timed(None, None)
            restored = restored and torch.equal(latents, self.timed_truth)
            ratios.append(uncached / cached)
        found = {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
        return {**found, "repetitions": len(ratios)}, restored

    def _timed(self, peer: Peer | None, setting: Setting | None) -> tuple[float, torch.Tensor]:
        with self._switched(peer, setting) as changes:
            world.barrier()
            start = time.perf_counter()
            latents = self.place.generate(self.plan.timed, {**self.plan.call, **changes, "output_type": "latent"})
            world.barrier()
            return time.perf_counter() - start, latents
