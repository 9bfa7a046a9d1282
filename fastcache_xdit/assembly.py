"""Builds the parts that run a model under one config: segments, stand-ins, judge, driver and session."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.approx.identity import check_adapters, check_identity, other_rounding
from fastcache_xdit.clock import Clock, Patch
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.counters import Counters
from fastcache_xdit.decision.policy import planned_skips
from fastcache_xdit.decision.schedule import marks_at
from fastcache_xdit.errors import UsageError
from fastcache_xdit.host.base import Host
from fastcache_xdit.host.group import GroupConsensus, StageRelay
from fastcache_xdit.host.identity import adapters, identity
from fastcache_xdit.host.listening import listen, sigmas_of
from fastcache_xdit.host.weights import quantisation, samples
from fastcache_xdit.host.xdit import layout
from fastcache_xdit.parallel.consensus import Consensus, Solo
from fastcache_xdit.parallel.ledger import Ledger
from fastcache_xdit.partial.allowed import check_tokens
from fastcache_xdit.partial.steps import PartialSteps
from fastcache_xdit.runtime.driver import Driver
from fastcache_xdit.runtime.followers import FollowingJudge, LeaderJudge
from fastcache_xdit.runtime.judge import AgreeingJudge, AheadJudge, Judge, ScheduledJudge
from fastcache_xdit.runtime.observer import Observer, Watched
from fastcache_xdit.runtime.record import Record
from fastcache_xdit.runtime.remarks import Remarks
from fastcache_xdit.runtime.rules import Rules
from fastcache_xdit.runtime.session import Session
from fastcache_xdit.runtime.stand_ins import StandIns
from fastcache_xdit.segments.attention import attentions
from fastcache_xdit.segments.segment import Block, Segment, partition
from fastcache_xdit.undo import Undo


@dataclass(frozen=True)
class ExecutionPlan:
    """A checked plan of which blocks of a model are skipped together and what replaces them; changes no module.

    Attributes:
        host: where the model runs.
        config: the options.
        lead: the lead blocks of this rank, which are always computed.
        stand_ins: the segments of this rank and their stand-ins.
    """

    host: Host
    config: FastCacheConfig
    lead: Sequence[Block]
    stand_ins: StandIns

    @property
    def layers(self) -> dict[nn.Module, str]:
        """All modules of the segments; attention layers with their names in a calibration, others with an empty one."""
        segments = self.stand_ins.segments
        modules = [module for segment in segments for block in segment.blocks for module in block.module.modules()]
        return dict.fromkeys(modules, "") | {attention: name for name, attention in attentions(segments)}


def plan_for(host: Host, config: FastCacheConfig, calibration: Calibration | None) -> ExecutionPlan:
    """Split the model into segments and choose their stand-ins.

    Args:
        host: where the model runs.
        config: the options.
        calibration: used instead of the file that the config names.
    Raises:
        UsageError: the config does not fit the model or the layout, or the calibration does not fit the model.
    """
    _check_lead_blocks(host, config)
    lead, segments = partition(host.blocks, config)
    if config.tokens:
        check_tokens(config.tokens, host.spec, segments, host.topology, host.rules_out_partial)
    stand_ins = _stand_ins(host, config, segments, _calibration(host, config, calibration))
    _ = stand_ins.by_segment  # raises now for a segment that the calibration lacks
    return ExecutionPlan(host, config, lead, stand_ins)


def attach(plan: ExecutionPlan, observer: Observer | None, undo: Undo) -> Session:
    """Stand around the calls of the transformer and its blocks, for as long as the undo log is open."""
    host, config, counters = plan.host, plan.config, Counters()
    record = Record(config, consensus_of(host, config, counters), _ledger(plan), counters)
    driver = driver_of(plan, record, Clock(), observer, undo)
    added = host.spec.added if config.tokens else ()
    session = Session(host.spec.bypass + added, driver, sigmas_of(host), *calls_of(host))
    session.check = weights_check(host, config, plan.stand_ins.calibration, record.remarks)
    return connect(host, session, undo)


def driver_of(plan: ExecutionPlan, record: Record, clock: Clock, observer: Observer | None, undo: Undo) -> Driver:
    """Stand around the calls of a plan's blocks, for as long as the undo log is open; return what they come to."""
    config, stand_ins = plan.config, plan.stand_ins
    partial = _partial_steps(config, stand_ins, record, observer)
    driver = Driver(config, stand_ins, _judge(plan, record), record, clock, partial, observer)
    if observer:
        observer.attach(Watched(clock, stand_ins.segments, stand_ins.by_segment, driver.judge), undo)
    driver.attach(plan.lead, undo)
    return driver


def calls_of(host: Host) -> tuple[Callable[[], Patch | None], bool]:
    """Return how a session tells the calls of the transformer apart."""
    return host.current_patch, host.scheduler is not None


def connect(host: Host, session: Session, undo: Undo) -> Session:
    """Let a session stand around the calls of the transformers, and listen to the scheduler."""
    for transformer in host.transformers:
        session.attach(transformer, undo)
    listen(host, session, undo)
    return session


def _check_lead_blocks(host: Host, config: FastCacheConfig) -> None:
    total, num_stages = host.num_blocks, host.topology.pipefusion_parallel_degree
    if config.lead_blocks >= total:
        raise UsageError(
            f"lead_blocks={config.lead_blocks} leaves nothing to skip: {type(host.model).__name__} has {total} blocks",
            f"set lead_blocks to at most {total - 1}",
        )
    first_stage = -(-total // num_stages)
    if (
        num_stages > 1
        and config.test != "none"
        and config.pp_decision == "leader"
        and config.lead_blocks >= first_stage
    ):
        raise UsageError(
            f"lead_blocks={config.lead_blocks} leaves the first PipeFusion stage, which decides for all, nothing to "
            f"skip: it has {first_stage} blocks",
            f"set lead_blocks to at most {first_stage - 1}, or pp_decision=stage",
        )


def weights_check(
    host: Host, config: FastCacheConfig, calibration: Calibration | None, remarks: Remarks
) -> Callable[[], None]:
    """Return what refuses a request with other adapters or weights than the calibration was made with.

    It is said at once where weights are rounded otherwise than those that it was made with.
    """
    if calibration is None or config.allow_adapters:
        return lambda: None
    if said := other_rounding(calibration.identity, quantisation(host)):
        remarks.make(said)
    made = {"samples": samples(host)}  # those of a calibration of earlier versions are not known

    def check() -> None:
        check_adapters({**calibration.identity, **made}, adapters(host), samples(host))

    return check


def _calibration(host: Host, config: FastCacheConfig, calibration: Calibration | None) -> Calibration | None:
    if calibration is None and config.calibration is None:
        return None
    calibration = calibration or Calibration.cached(config.calibration or "")
    check_identity(calibration.identity, identity(host), config.allow_adapters)
    return calibration


def _stand_ins(
    host: Host, config: FastCacheConfig, segments: Sequence[Segment], calibration: Calibration | None
) -> StandIns:
    num_stages, topology = host.topology.pipefusion_parallel_degree, host.topology
    together = config.granularity == "step" and (config.test == "none" or config.pp_decision == "leader")
    keys = [segment.key for segment in segments]
    if num_stages > 1 and together:
        keys = [host.whole_key(config.lead_blocks) for _ in segments]
    planned_ahead = config.test == "none" and config.granularity == "step" and config.tokens is None
    runs_ahead = host.can_run_ahead and planned_ahead and config.lead_blocks == 0
    idle = runs_ahead and topology.stage < num_stages - 1
    return StandIns(config, segments, keys, runs_ahead, idle, calibration)


def _ledger(plan: ExecutionPlan) -> Ledger:
    stand_ins, names = plan.stand_ins, [segment.name for segment in plan.stand_ins.segments]
    return Ledger(f"{plan.config!r} {names} {stand_ins.calibration and stand_ins.calibration.stamp}")


def consensus_of(host: Host, config: FastCacheConfig, counters: Counters) -> Consensus:
    """Return how this rank agrees with others."""
    if len(host.topology.agreeing_ranks(config.cfg_agreement)) == 1:
        return Solo()
    return GroupConsensus(host.topology, config.cfg_agreement, host.device, counters)


def _partial_steps(
    config: FastCacheConfig, stand_ins: StandIns, record: Record, observer: Observer | None
) -> PartialSteps | None:
    if config.tokens is None:
        return None
    on_tokens = observer.on_tokens if observer else None
    return PartialSteps(config.tokens, record.consensus, record.ledger, stand_ins.static_forecast(), on_tokens)


def _judge(plan: ExecutionPlan, record: Record) -> Judge:
    config, topology = plan.config, plan.host.topology
    rules = Rules(config, plan.stand_ins.spreads())
    if config.test == "none":
        return ScheduledJudge(rules)
    num_stages = topology.pipefusion_parallel_degree
    kind = AheadJudge if config.sync == "ahead" else AgreeingJudge
    agreeing = kind(rules, record.consensus, record.ledger)
    patches = num_stages > 1 and plan.host.spec.patches_follow_first
    judge: Judge = FollowingJudge(agreeing, branches=config.cfg_agreement, patches=patches)
    if num_stages > 1 and config.pp_decision == "leader":
        layout.check_decision(config, num_stages)
        judge = LeaderJudge(judge, StageRelay(topology, record.counters))
    return judge


def scheduled_skips(config: FastCacheConfig) -> Callable[[Sequence[float]], Sequence[bool]]:
    """Return a function from noise levels to the steps that the schedule and the hard limits skip."""
    return lambda sigmas: planned_skips(marks_at(config.schedule or {}, len(sigmas)), config)
