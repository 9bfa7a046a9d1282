"""Builds what skips blocks of a model that the catalogue does not have, from what its first call shows."""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch
from torch import nn

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.assembly import ExecutionPlan, calls_of, connect, consensus_of, driver_of, plan_for, weights_check
from fastcache_xdit.clock import Clock
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.counters import Counters
from fastcache_xdit.errors import UsageError
from fastcache_xdit.host.base import Host
from fastcache_xdit.host.listening import sigmas_of
from fastcache_xdit.models.catalogue import keep_derived, known_models
from fastcache_xdit.models.derive import Unskippable, derive, refined
from fastcache_xdit.models.watch import block_lists, repeatable, uncompiled
from fastcache_xdit.output_assembly import limit_memory, output_driver
from fastcache_xdit.parallel.ledger import Ledger
from fastcache_xdit.runtime.driver import Driver
from fastcache_xdit.runtime.first_call import FirstCall
from fastcache_xdit.runtime.observer import Observer
from fastcache_xdit.runtime.output import OutputDriver
from fastcache_xdit.runtime.record import Record
from fastcache_xdit.runtime.session import Session
from fastcache_xdit.segments.replay import TOLERANCE, missed
from fastcache_xdit.undo import Undo

logger = logging.getLogger(__name__)
Forward = functools.partial[Any]  # of the transformer, with the arguments of its first call


def attach_derived(
    host: Host, config: FastCacheConfig, calibration: Calibration | None, observer: Observer | None, undo: Undo
) -> Session:
    """Replace the forward of the transformer; its first call shows the blocks, whose forwards are then replaced too.

    Where it cannot be told how they are called, and a schedule alone decides, the output is stood in for instead.

    Raises:
        UsageError: there are no blocks, or there are stages of PipeFusion, of which one call does not show the order.
            The first call may raise it too.
    """
    if host.topology.pipefusion_parallel_degree > 1:
        name = type(host.model).__name__
        raise UsageError(
            f"granularity={config.granularity} is not supported under PipeFusion for {name}: a stage has a part of the "
            "blocks, and does not see their order",
            f"it is for {', '.join(known_models())}; set granularity: output, or leave test and granularity out",
        )
    if config.test != "none" and not block_lists(host.model):
        _ = host.spec  # raises
    counters, clock = Counters(), Clock()
    record = Record(config, consensus_of(host, config, counters), Ledger(repr(config)), counters)

    def build(forward: Forward) -> Driver | OutputDriver:
        try:
            shown = repeatable(_with_signature(forward, host.transformer))
            plan = _derived_plan(host, config, calibration, record, shown)
        except Unskippable as error:
            if not sigmas_of(host) or config.test != "none" or config.tokens or config.calibration or calibration:
                raise
            logger.warning("%s; FastCache stands in for the output instead", error.problem)
            return output_driver(host, config, record, clock)
        session.check = weights_check(host, config, plan.stand_ins.calibration, record.remarks)
        driver = driver_of(plan, record, clock, observer, undo)
        limit_memory(session, driver, host, config)
        return driver

    session = Session((), FirstCall(record, clock, build), sigmas_of(host), *calls_of(host))
    return connect(host, session, undo)


def _derived_plan(
    host: Host, config: FastCacheConfig, calibration: Calibration | None, record: Record, forward: Forward
) -> ExecutionPlan:
    """Derive the blocks of a model from one call, with as few segments as leave the model as it is.

    Raises:
        Unskippable: it cannot be told how the blocks are called, or what else reads them.
        UsageError: as `plan_for`.
    """
    for spec in refined(derive(host.model, forward, functools.partial(_add_up, record))):
        host.describe(spec)
        plan = plan_for(host, config, calibration)
        if _repeats(plan, record, forward):
            keep_derived(host.model, spec)
            return plan
    raise Unskippable(
        f"the blocks of {type(host.model).__name__} cannot be skipped: something else reads what they return",
        "set granularity: output, or leave test and granularity out",
    )


def _with_signature(forward: Forward, transformer: nn.Module) -> Forward:
    """Return the call with the argument names of the transformer's forward, which a module's `__call__` hides."""
    call, named = forward.func, functools.wraps(uncompiled(transformer).forward)
    return functools.partial(named(lambda *args, **kwargs: call(*args, **kwargs)), *forward.args, **forward.keywords)


def _repeats(plan: ExecutionPlan, record: Record, forward: Forward) -> bool:
    """Return whether the model stays the same where estimates of its segments are exact; all ranks judge alike."""
    ways = (_add_up(record, sums).tolist() for sums in missed(plan.stand_ins.segments, forward))
    return all(error <= TOLERANCE**2 * norm for error, norm in ways)


def _add_up(record: Record, numbers: torch.Tensor) -> torch.Tensor:
    """Add up [K] float64 over the agreeing ranks and their branches, during the first call."""
    return record.consensus.agree(numbers[None], record.ledger.stamp, "the first call").sum(dim=0)
