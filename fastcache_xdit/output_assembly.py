"""Builds what runs a denoiser whose whole output is stood in for (`granularity: output`)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.approx.identity import check_identity
from fastcache_xdit.approx.output import SEGMENT
from fastcache_xdit.approx.pooled import pooled
from fastcache_xdit.assembly import connect, consensus_of, weights_check
from fastcache_xdit.clock import Clock
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.counters import Counters
from fastcache_xdit.decision.policy import planned_skips, replanned
from fastcache_xdit.decision.schedule import marks_at
from fastcache_xdit.errors import UsageError
from fastcache_xdit.host import cpu
from fastcache_xdit.host.base import Host
from fastcache_xdit.host.effects import SchedulerEffects
from fastcache_xdit.host.identity import identity
from fastcache_xdit.host.listening import sigmas_of
from fastcache_xdit.host.xdit import layout
from fastcache_xdit.host.xdit.layout import check_memory
from fastcache_xdit.learning.ranks import Ranks
from fastcache_xdit.parallel.ledger import Ledger
from fastcache_xdit.runtime.driver import Driver
from fastcache_xdit.runtime.memory import MemoryChoice
from fastcache_xdit.runtime.output import OutputDriver
from fastcache_xdit.runtime.pilot import Pilot
from fastcache_xdit.runtime.record import Record
from fastcache_xdit.runtime.remarks import AMPLIFIED
from fastcache_xdit.runtime.session import Session
from fastcache_xdit.undo import Undo


def attach_output(
    host: Host, config: FastCacheConfig, known: Calibration | None, undo: Undo
) -> tuple[Session, Pilot, SchedulerEffects]:
    """Replace the forward of the denoiser, for as long as the undo log is open.

    Args:
        host: where the model runs.
        config: the options.
        known: a calibration of this model's output; None for the pooled one.
    Returns:
        The session, its pilot, and the effects of its scheduler.
    Raises:
        UsageError: `check` is asked for where outputs are not seen.
    """
    _check_decision(host, config)
    counters, ledger = Counters(), Ledger(f"{config!r} {known and known.stamp}")
    record = Record(config, consensus_of(host, config, counters), ledger, counters)
    driver, effects = _driver(host, config, known, record, Clock())
    sigmas, announced, pilot = sigmas_of(host), host.scheduler is not None, driver.pilot
    session = Session((), driver, sigmas, host.current_patch, announced)
    session.handover.view, session.check = effects.view, weights_check(host, config, known, record.remarks)
    return connect(host, session, undo), pilot, effects


def limit_memory(session: Session, blocks: Driver, host: Host, config: FastCacheConfig) -> None:
    """Let a session that skips blocks stand in for the output where their states are larger than `memory_budget`.

    Raises:
        UsageError: as `check_memory`; or the loop has no scheduler and gives no noise levels.
    """
    if config.memory_budget is None:
        return
    check_memory(config, host.topology.pipefusion_parallel_degree)
    driver = output_driver(host, config, session.record, Clock())  # with its own clock, blocks are let alone
    limit = int(config.memory_budget if config.memory_budget > 1 else config.memory_budget * cpu.memory())
    session.memory = MemoryChoice(blocks, driver, limit, Ranks(host.topology).largest)


def output_driver(host: Host, config: FastCacheConfig, record: Record, clock: Clock) -> OutputDriver:
    """Return a driver of the output that may take the place of one of blocks."""
    driver, _ = _driver(host, config, None, record, clock)
    return driver


def _driver(
    host: Host, config: FastCacheConfig, known: Calibration | None, record: Record, clock: Clock
) -> tuple[OutputDriver, SchedulerEffects]:
    sigmas = sigmas_of(host)
    assert sigmas, "plugin.enable refuses a loop without noise levels"
    effects = SchedulerEffects(host.scheduler, sigmas, lambda: host.step_arguments)
    pilot = Pilot(config.goal, known or pooled(), lambda: effects().final, switch=host.switch)
    if config.schedule:
        pilot.schedule = functools.partial(_scheduled, config, pilot)
    pilot.unfit = lambda: AMPLIFIED if effects.amplifies else ""
    return OutputDriver(pilot, record, clock, host.scheduler is not None), effects


def output_calibration(host: Host, config: FastCacheConfig, calibration: Calibration | None) -> Calibration | None:
    """Return the calibration that is given, as an object or as a file; None if none is.

    Raises:
        UsageError: it was made for another model, or not of its output.
    """
    if calibration is None and config.calibration is None:
        return None
    calibration = calibration or Calibration.cached(config.calibration or "")
    if SEGMENT not in calibration.moments:
        raise UsageError(
            f"{config.calibration or 'the calibration'} has no moments of the model's output",
            "set granularity: step, or learn one while serving",
        )
    if calibration.identity:  # a pooled one is of no model
        check_identity(calibration.identity, identity(host), config.allow_adapters)
    return calibration


def _check_decision(host: Host, config: FastCacheConfig) -> None:
    if config.check and host.scheduler is None:
        raise UsageError(
            "check needs a scheduler, to which outputs are handed over", "enable FastCache on the pipeline"
        )
    layout.check_decision(config, host.topology.pipefusion_parallel_degree)


def _scheduled(config: FastCacheConfig, pilot: Pilot, sigmas: Sequence[float]) -> str:
    """Return the mask of the schedule; where it has none for so many steps, one planned with as large a share.

    That of a config for blocks, whose place the output takes, is stretched as it would be for these.
    """
    goal = replanned(config, len(sigmas))
    marks = pilot.mask_for(goal, tuple(sigmas)) if goal else marks_at(config.schedule or {}, len(sigmas))
    return "".join("0" if skip else "1" for skip in planned_skips(marks, config))
