"""Composition root: the only place where the rooms meet."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.clock import Clock
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.counters import Counters
from fastcache_xdit.decision.policy import foreseen
from fastcache_xdit.decision.schedule import marks_for
from fastcache_xdit.errors import UsageError
from fastcache_xdit.host import cpu
from fastcache_xdit.host.base import Host
from fastcache_xdit.host.find import host_of
from fastcache_xdit.host.group import GroupConsensus, StageRelay, confirm_options
from fastcache_xdit.host.identity import identity
from fastcache_xdit.host.xdit import layout, registration
from fastcache_xdit.models.catalogue import spec_for
from fastcache_xdit.models.spec import ModelSpec
from fastcache_xdit.parallel.consensus import Consensus, Solo
from fastcache_xdit.parallel.ledger import Entry, Ledger
from fastcache_xdit.parallel.topology import Topology
from fastcache_xdit.partial.allowed import check_tokens
from fastcache_xdit.partial.steps import PartialSteps
from fastcache_xdit.runtime.driver import Driver
from fastcache_xdit.runtime.fits import Fits
from fastcache_xdit.runtime.judge import AgreeingJudge, FollowingJudge, Judge, LeaderJudge, Rules, ScheduledJudge
from fastcache_xdit.runtime.session import Session
from fastcache_xdit.segments.attention import attentions
from fastcache_xdit.segments.segment import Block, Segment, blocks_of, partition, whole_key
from fastcache_xdit.undo import Undo

_MARK = "_fastcache_handle"


@dataclass(frozen=True)
class Report:
    """What happened since the cache was enabled or reset; `ledger` and `ledgers_agree` are of the last request."""

    counters: Counters
    ledger: tuple[Entry, ...]
    ledgers_agree: bool | None
    bytes_held: int
    fixes: tuple[str, ...]

    def __str__(self) -> str:
        return str(self.counters)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            **self.counters.to_dict(),
            "ledger": [entry._asdict() for entry in self.ledger],
            "ledgers_agree": self.ledgers_agree,
            "bytes_held": self.bytes_held,
            "fixes": list(self.fixes),
        }


class Handle:
    """A cache that is on; `disable` puts every module back as it was."""

    def __init__(self, session: Session, undo: Undo, fixes: list[str], bytes_beside: Callable[[], int]) -> None:
        self._session = session
        self._undo = undo
        self._fixes = tuple(fixes)
        self._bytes_beside = bytes_beside

    def disable(self) -> None:
        """Restore every module that was touched and free the cached tensors; a second call does nothing."""
        self._undo.close()
        self._session.driver.reset()

    def reset(self) -> None:
        """Forget references and counts; the next step is computed."""
        self._session.driver.reset()
        self._session.driver.counters.clear()

    def branch(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Calls inside belong to the CFG branch `name`: for loops that call the transformer once per branch."""
        return self._session.clock.in_branch(name)

    def focus(self, mask: Any) -> None:
        """Say what an edit may change: with `tokens.score: region`, what partial steps compute.

        Args:
            mask: [H, W] of the picture's shape at any resolution, nonzero inside; an array, a tensor or a PIL image.
        Raises:
            UsageError: the cache computes no region.
        """
        partial = self._session.driver.partial
        if partial is None or partial.options.score != "region":
            raise UsageError("there is no region to compute", "set tokens.score=region")
        partial.focus(torch.as_tensor(np.asarray(mask)))

    @property
    def driver(self) -> Driver:
        """What runs the blocks; calibration watches it."""
        return self._session.driver

    def report(self) -> Report:
        """Counts and decisions of this rank; communicates nothing."""
        driver = self._session.driver
        held = driver.bytes_held() + self._bytes_beside()
        ledger = tuple(self._session.ledger.entries)
        return Report(driver.counters, ledger, self._session.ledgers_agree, held, self._fixes)


def enable(target: Any, config: FastCacheConfig | None = None) -> Handle:
    """Turn FastCache on for an xDiT pipeline, a diffusers pipeline, or a bare diffusers transformer.

    Under xDiT every rank must call it, after the pipeline was built and before it is called.

    Raises:
        UsageError: unknown model, unsupported parallel layout, another cache on, or FastCache already on.
        RankDivergenceError: on all ranks of the request, where their options differ.
    """
    config = config or FastCacheConfig()
    host = host_of(target)
    if host.topology is not None:
        confirm_options(host.topology, Ledger(repr(config)).stamp)
    spec = spec_for(host.model)
    if hasattr(host.transformer, _MARK):
        raise UsageError("FastCache is already enabled on this transformer", "call handle.disable() first")
    if host.scheduler is None and (config.calibration or config.schedule):
        raise UsageError(
            "a calibration or a schedule needs a scheduler to know the steps by", "enable FastCache on the pipeline"
        )
    lead, segments = _segments(host, spec, config)
    with contextlib.ExitStack() as on_error:
        undo = on_error.enter_context(Undo())
        fixes = host.fixes(undo)
        fits = _fits(host, spec, config, segments)
        session = _attach(host, spec, config, lead, fits, undo)
        if host.ahead and fits.alone:
            host.ahead(undo, session, lambda steps: foreseen(marks_for(config.schedule or {}, steps), config))
        bytes_beside = host.forecast(undo, session.clock, _layers(segments), fits.forecast)
        handle = Handle(session, undo, fixes, bytes_beside)
        undo.set(host.transformer, _MARK, handle)
        on_error.pop_all()
    return handle


@contextlib.contextmanager
def fastcache(target: Any, config: FastCacheConfig | None = None) -> Iterator[Handle]:
    """`enable` for the length of a with block; leaving it restores every module."""
    handle = enable(target, config)
    try:
        yield handle
    finally:
        handle.disable()


@contextlib.contextmanager
def repaired(target: Any) -> Iterator[list[str]]:
    """xDiT with its known defects cured and no cache: what a cached run is compared with. Gives the fixes' names."""
    with Undo() as undo:
        yield host_of(target).fixes(undo)


_registration: list[Undo] = []
_applied: list[Handle] = []


def register() -> None:
    """Make `fastcache` a cache method of xDiT in this process, for scripts that call xDiT themselves.

    Afterwards `--cache fastcache` and `--cache_method fastcache` work in xDiT's parsers, runner models and pipeline
    wrappers. Call it before xfuser is used; a second call does nothing.

    Raises:
        RuntimeError: no accelerator here, and xfuser was imported before.
    """
    cpu.prepare()
    if not _registration:
        _registration.append(Undo())
        registration.install(_apply, f"{__name__}.{register.__name__}", _registration[0])


def _apply(pipe: Any, text: str | None) -> Handle:
    _applied.append(enable(pipe, FastCacheConfig.from_text(text)))
    return _applied[-1]


def applied() -> list[Handle]:
    """Handles of the caches that xDiT switched on through the registration, in order."""
    return list(_applied)


def _segments(host: Host, spec: ModelSpec, config: FastCacheConfig) -> tuple[list[Block], list[Segment]]:
    blocks = blocks_of(host.model, spec, host.offsets, host.lengths)
    total = sum(host.lengths.values()) or len(blocks)
    if config.lead_blocks >= total:
        raise UsageError(
            f"lead_blocks={config.lead_blocks} leaves nothing to skip: {type(host.model).__name__} has {total} blocks",
            f"set lead_blocks to at most {total - 1}",
        )
    stages = host.topology.pipefusion_parallel_degree if host.topology else 1
    first_stage = -(-total // stages)
    if stages > 1 and config.test != "none" and config.pp_decision == "leader" and config.lead_blocks >= first_stage:
        raise UsageError(
            f"lead_blocks={config.lead_blocks} leaves the first PipeFusion stage, which decides for all, nothing to "
            f"skip: it has {first_stage} blocks",
            f"set lead_blocks to at most {first_stage - 1}, or pp_decision=stage",
        )
    lead, segments = partition(blocks, config)
    if config.tokens:
        check_tokens(config.tokens, spec, segments, host.topology, host.whole_only)
    return lead, segments


def _layers(segments: list[Segment]) -> dict[nn.Module, str]:
    """Modules that may ask for keys and values, and the names of those that a calibration knows."""
    modules = [module for segment in segments for block in segment.blocks for module in block.module.modules()]
    return dict.fromkeys(modules, "") | {attention: name for name, attention in attentions(segments)}


def _attach(host: Host, spec: ModelSpec, config: FastCacheConfig, lead: list[Block], fits: Fits, undo: Undo) -> Session:
    counters, clock, segments = Counters(), Clock(), fits.segments
    rules = Rules(config, fits.spreads())
    stamp = fits.calibration and fits.calibration.stamp
    ledger = Ledger(f"{config!r} {[segment.name for segment in segments]} {stamp}")
    consensus = _consensus(host, config, counters)
    agreeing = AgreeingJudge(config, rules, consensus, ledger, counters, _share(host, config, lead, segments))
    judge = ScheduledJudge(config, rules, ledger) if config.test == "none" else _judge(agreeing, spec, host.topology)
    partial = PartialSteps(config.tokens, consensus, ledger, fits.static_forecast) if config.tokens else None
    listeners = [rules.begin, *fits.listeners()]
    driver = Driver(config, segments, fits.stand_ins, judge, clock, counters, listeners, partial)
    session = Session(spec, driver, ledger, consensus, _sigmas(host.scheduler), host.patch)
    undo.set(host.transformer, "forward", session.wrapped(host.transformer.forward))
    for block in lead:
        undo.set(block.module, "forward", driver.counted(block))
    for segment in segments:
        for block in segment.blocks:
            undo.set(block.module, "forward", driver.decided(segment, block))
    if partial:
        partial.attach(segments, undo)
    _listen(host, session, undo)
    return session


def _consensus(host: Host, config: FastCacheConfig, counters: Counters) -> Consensus:
    if host.topology is None or len(host.topology.agreeing_ranks(config.cfg_agreement)) == 1:
        return Solo()
    device = next(host.model.parameters()).device
    return GroupConsensus(host.topology, config.cfg_agreement, device, counters)


def _calibration(host: Host, spec: ModelSpec, config: FastCacheConfig) -> Calibration | None:
    if config.calibration is None:
        return None
    calibration = Calibration.shared(config.calibration)
    calibration.check(identity(host, spec), config.allow_adapters)
    return calibration


def _fits(host: Host, spec: ModelSpec, config: FastCacheConfig, segments: list[Segment]) -> Fits:
    stages = host.topology.pipefusion_parallel_degree if host.topology else 1
    together = config.granularity == "step" and (config.test == "none" or config.pp_decision == "leader")
    keys = [segment.key for segment in segments]
    if stages > 1 and together:
        keys = [whole_key(host.model, spec, host.lengths, config.lead_blocks) for _ in segments]
    foreseeable = config.test == "none" and config.granularity == "step" and config.tokens is None
    alone = host.ahead is not None and foreseeable and config.lead_blocks == 0
    idle = alone and host.topology is not None and host.topology.stage < stages - 1
    return Fits(config, segments, keys, alone, idle, _calibration(host, spec, config))


def _share(host: Host, config: FastCacheConfig, lead: list[Block], segments: Sequence[Segment]) -> float:
    """This pipeline stage's part of all blocks that may be skipped; 1 where there is one stage."""
    held = sum(len(segment.blocks) for segment in segments)
    total = sum(host.lengths.values()) or len(lead) + held
    return held / (total - config.lead_blocks)


def _judge(agreeing: AgreeingJudge, spec: ModelSpec, topology: Topology | None) -> Judge:
    config = agreeing.config
    stages = topology.pipefusion_parallel_degree if topology else 1
    patches = stages > 1 and spec.patches_follow_first
    judge: Judge = FollowingJudge(agreeing, config, agreeing.ledger, branches=config.cfg_agreement, patches=patches)
    if topology and stages > 1 and config.pp_decision == "leader":
        layout.check_decision(config, stages)
        judge = LeaderJudge(judge, StageRelay(topology), config, agreeing.ledger, agreeing.counters)
    return judge


def _sigmas(scheduler: Any) -> Callable[[], list[float]] | None:
    """Noise sigmas, 1 to 0, of the request that `scheduler` was set up for; image-to-image begins later in the list."""
    if scheduler is None:
        return None
    whole = float(getattr(scheduler.config, "num_train_timesteps", 1000))

    def sigmas() -> list[float]:
        taken = scheduler.timesteps[getattr(scheduler, "begin_index", None) or 0 :]
        return [float(timestep) / whole for timestep in taken.tolist()]

    return sigmas


def _listen(host: Host, session: Session, undo: Undo) -> None:
    """Learn of new requests from the scheduler, and of CFG branches from diffusers' cache contexts."""
    if host.scheduler is not None:
        set_timesteps = host.scheduler.set_timesteps

        @functools.wraps(set_timesteps)
        def announced(*args: Any, **kwargs: Any) -> Any:
            session.announce()
            return set_timesteps(*args, **kwargs)

        undo.set(host.scheduler, "set_timesteps", announced)
    cache_context: Any = getattr(host.transformer, "cache_context", None)
    if cache_context is not None:

        @contextlib.contextmanager
        def named(name: str, *args: Any, **kwargs: Any) -> Iterator[None]:
            with session.clock.in_branch(name), cache_context(name, *args, **kwargs):
                yield

        undo.set(host.transformer, "cache_context", named)
