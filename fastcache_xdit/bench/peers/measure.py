"""Run caches one setting at a time on the same weights, prompts, seeds and schedule, and measure all alike."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fastcache_xdit.bench.peers.backends import Backend
from fastcache_xdit.bench.peers.environment import package_version
from fastcache_xdit.bench.peers.measurement import (
    CRASHED,
    LEFT_OUT,
    NOT_INSTALLED,
    NOTHING,
    RAN,
    REFUSED,
    Measurement,
)
from fastcache_xdit.bench.peers.peer import Peer, Setting, Subject
from fastcache_xdit.bench.peers.sample import Sample, Tape
from fastcache_xdit.bench.peers.score import score
from fastcache_xdit.evaluate.flops import counted, counted_steps
from fastcache_xdit.host.find import host_of
from fastcache_xdit.host.xdit import world
from fastcache_xdit.host.xdit.engine import Batch
from fastcache_xdit.plugin import repaired

DECIDES_APART = "hooks one process's transformer: under parallelism its ranks would decide apart, and hang"
Cache = tuple[Peer, Setting]


@dataclass(frozen=True)
class BenchPlan:
    """What is run.

    Attributes:
        batches: all prompts.
        timed: the few whose wall time is taken.
        rehearsals: prompts that are not measured, for caches that calibrate; repeated where more are asked for.
        repetitions: how often each time is taken.
        call: arguments of the pipeline's call.
        scored: pictures are judged; those of random weights are not.
        model: its name.
        compiled: its transformer compiles in the first request of each setting, which is not timed.
    """

    batches: Sequence[Batch]
    timed: Batch
    rehearsals: Sequence[Batch]
    repetitions: int
    call: dict[str, Any]
    scored: bool = True
    model: str = ""
    compiled: bool = False

    @property
    def steps(self) -> int:
        """Return the number of denoising steps of a request."""
        return self.call["num_inference_steps"]


class Refusal(Exception):
    """The cache would not be switched on."""


class PeerBench:
    """Measure caches on one model; `load` gives it anew whenever a cache failed or left something behind."""

    def __init__(self, load: Callable[[], Backend], plan: BenchPlan) -> None:
        self.load, self.plan = load, plan
        self._load_anew()
        self._outside = self._outside_blocks()
        self.truth = self._sample(None)
        self.timed_truth = self._timed(None)[1]

    def measure(self, peer: Peer, setting: Setting) -> Measurement:
        """Measure one setting, whatever becomes of it: a cache's exception is a result as well."""
        if self.backend.ranks > 1 and not peer.parallel:
            return Measurement(peer.name, setting.label, LEFT_OUT, DECIDES_APART)
        if not peer.ours and package_version(peer.package) == NOT_INSTALLED:
            return Measurement(peer.name, setting.label, NOT_INSTALLED, f"pip install {peer.package}")
        try:
            return self._measure(peer, setting)
        except Refusal as refusal:
            return self._failed(peer, setting, REFUSED, refusal.__cause__)
        except Exception as error:  # noqa: BLE001  whatever a cache dies of is its result
            return self._failed(peer, setting, CRASHED, error)

    def _failed(self, peer: Peer, setting: Setting, status: str, error: BaseException | None) -> Measurement:
        self._load_anew()
        return Measurement(peer.name, setting.label, status, f"{type(error).__name__}: {error}")

    def _measure(self, peer: Peer, setting: Setting) -> Measurement:
        sample = self._sample((peer, setting))
        uncached, executed = sum(self.truth.steps), sum(sample.steps)
        compute = (executed - sample.outside) / (uncached - self.truth.outside)
        same = torch.equal(sample.pictures, self.truth.pictures)
        speedup, restored = self._speedup((peer, setting))
        if not restored:
            self._load_anew()
        return Measurement(
            peer.name,
            setting.label,
            # Deciding takes FLOPs too, so a cache that skipped nothing may have executed more.
            NOTHING if same and executed >= uncached else RAN,
            compute=compute,
            transformer=executed / uncached,
            steps=tuple(round(step * len(self.truth.steps) / uncached, 4) for step in sample.steps),
            speedup=speedup,
            restored=restored,
            scores=score(self.backend.pipe, self.plan.batches, sample, self.truth) if self.plan.scored else None,
            pictures=sample.pictures,
        )

    def _load_anew(self) -> None:
        self.backend = self.load()
        self.transformer = host_of(self.backend.pipe).transformer  # while no cache is on, which a host would refuse
        self.subject = Subject(self.backend.pipe, self.plan.steps, self._rehearse, self.plan.model)

    def _rehearse(self, number: int) -> None:
        rehearsals = self.plan.rehearsals
        self.backend.generate(rehearsals[number % len(rehearsals)], self.plan.call)

    def _outside_blocks(self) -> float:
        """Count an uncached step's FLOPs on this rank outside the blocks."""
        with self._switched(None), counted(self.backend.pipe) as blocks, counted_steps(self.transformer) as steps:
            self.backend.generate(self.plan.batches[0], self.plan.call)
        return (steps.total() - blocks.total()) / len(steps)

    def _sample(self, cache: Cache | None) -> Sample:
        first, *others = self.plan.batches
        with self._taping() as tape, self._switched(cache) as changes, counted_steps(self.transformer) as steps:
            runs = [(self.backend.generate(first, {**self.plan.call, **changes}), tape)]
        for batch in others:
            with self._taping() as tape, self._switched(cache) as changes:
                runs.append((self.backend.generate(batch, {**self.plan.call, **changes}), tape))
        latents = [tape.latents for _, tape in runs if tape.latents is not None]
        by_timestep: Counter[float] = sum(world.all_gather_objects(steps), Counter())
        return Sample(
            pictures=torch.cat([pictures for pictures, _ in runs]),
            latents=torch.cat(latents) if latents else None,
            steps=[flops for _, flops in sorted(by_timestep.items(), reverse=True)],
            outside=sum(world.all_gather_objects(self._outside * sum(flops > 0 for flops in steps.values()))),
            tape=runs[0][1],
        )

    def _taping(self) -> contextlib.AbstractContextManager[Tape]:
        """Tape what reaches the scheduler, below what a cache puts in front of it.

        Not on several ranks: there xDiT hands its patches on inside of the scheduler's `step`.
        """
        return Tape(self.backend.pipe).running(self.plan.scored and self.backend.ranks == 1)

    @contextlib.contextmanager
    def _switched(self, cache: Cache | None) -> Iterator[dict[str, Any]]:
        """Switch a cache on, or none; give the call arguments that it changes. Raises Refusal."""
        if cache is None:
            with repaired(self.backend.pipe):
                yield {}
            return
        peer, setting = cache
        with contextlib.ExitStack() as stack:
            try:
                changes = stack.enter_context(peer.apply(self.subject, **setting.knobs))
            except Exception as error:
                raise Refusal from error
            yield changes

    def _speedup(self, cache: Cache) -> tuple[dict[str, float], bool]:
        """Time the cache without decoding, and uncached after it; also whether uncached still gives the same bits."""
        ratios, restored = [], True
        for _ in range(self.plan.repetitions):
            cached, _ = self._timed(cache)
            uncached, latents = self._timed(None)
            restored = restored and torch.equal(latents, self.timed_truth)
            ratios.append(uncached / cached)
        speedup = {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
        return {**speedup, "repetitions": len(ratios)}, restored

    def _timed(self, cache: Cache | None) -> tuple[float, torch.Tensor]:
        with self._switched(cache) as changes:
            call = {**self.plan.call, **changes, "output_type": "latent"}
            if self.plan.compiled:
                self.backend.generate(self.plan.timed, call)
            world.barrier()
            start = time.perf_counter()
            latents = self.backend.generate(self.plan.timed, call)
            world.barrier()
            return time.perf_counter() - start, latents
