"""Turns the cache on, for a pipeline or transformer at hand or by name inside xDiT."""

from __future__ import annotations

import atexit
import contextlib
import logging
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.assembly import attach, plan_for, scheduled_skips
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.counters import Counters
from fastcache_xdit.derived_assembly import attach_derived
from fastcache_xdit.errors import RestoreError, UsageError
from fastcache_xdit.handle import Handle
from fastcache_xdit.home import Home
from fastcache_xdit.host import cpu
from fastcache_xdit.host.base import Host
from fastcache_xdit.host.calls import time_calls
from fastcache_xdit.host.find import host_of
from fastcache_xdit.host.group import confirm_options
from fastcache_xdit.host.xdit import registration, world
from fastcache_xdit.learning.learner import Learner
from fastcache_xdit.models.spec import timestep_of
from fastcache_xdit.models.watch import signature_of, uncompiled
from fastcache_xdit.output_assembly import attach_output, limit_memory, output_calibration
from fastcache_xdit.parallel.ledger import Ledger
from fastcache_xdit.runtime.driver import Driver
from fastcache_xdit.runtime.observer import Observer
from fastcache_xdit.telling import in_words, tell
from fastcache_xdit.undo import Undo
from fastcache_xdit.wrapping import PREFIX

logger = logging.getLogger(__name__)

_MARK = f"{PREFIX}handle"


def enable(
    target: Any,
    config: FastCacheConfig | None = None,
    *,
    calibration: Calibration | None = None,
    observer: Observer | None = None,
    sigmas: Sequence[float] | None = None,
    home: Home | None = None,
    **options: Any,
) -> Handle:
    """Turn FastCache on for an xDiT pipeline, a diffusers pipeline, or a bare diffusers transformer.

    Under xDiT every rank must call this, after the pipeline was built and before it is used.

    Args:
        target: the pipeline or transformer.
        config: options; None for the defaults.
        calibration: used instead of the file that `config.calibration` names.
        observer: is shown what the cache does to blocks.
        sigmas: noise level of each step, 1 to 0, for a loop without a scheduler.
        home: where what is learnt is found and kept; None for the user's folder, or with a `calibration` for none.
        options: options by name instead of a config, such as `budget=0.4`.
    Raises:
        UsageError: the config does not fit the model, the parallel layout is not supported, or a cache is already on.
        RankDivergenceError: the ranks of a request have different options; raised on all of them.
    """
    if config is not None and options:
        raise UsageError(f"a config and {', '.join(options)} are both given", "put everything into the config")
    config = FastCacheConfig.from_dict(options) if config is None else config
    if not isinstance(config, FastCacheConfig):
        raise UsageError(
            f"config must be a FastCacheConfig, not {type(config).__name__}",
            "use FastCacheConfig.from_file or from_dict",
        )
    host = host_of(target, sigmas)
    if host.topology.world_size > 1:
        may_learn = config.test == "plan" and calibration is None  # with learn=0: what was learnt before
        confirm_options(host.topology, Ledger(repr(config)).stamp, may_learn)
    _check(host, config, calibration)
    with contextlib.ExitStack() as on_error:
        undo = on_error.enter_context(Undo())
        if config.granularity == "output":
            handle = _output(target, host, config, calibration, home, undo)
        else:
            handle = _blocks(host, config, calibration, observer, undo)
        if target is not host.transformer and callable(target):
            time_calls(target, handle._session, undo)
        for transformer in host.transformers:
            undo.set(uncompiled(transformer), _MARK, handle)
        on_error.pop_all()
    if host.topology.rank == 0:
        tell(f"on for {type(host.model).__name__}: {in_words(config, handle.plan, handle.is_recording)}")
    return handle


def _blocks(
    host: Host, config: FastCacheConfig, calibration: Calibration | None, observer: Observer | None, undo: Undo
) -> Handle:
    """Skip blocks of the transformer.

    Raises:
        UsageError: there are two of them, or as `plan_for`.
    """
    if host.others:
        raise UsageError(
            f"granularity={config.granularity} is for one transformer, and two are called here",
            "set granularity: output, or leave test and granularity out",
        )
    if not host.is_known:  # also where it was derived before: another granularity has to be checked anew
        fixes = host.fix(undo)
        return Handle(attach_derived(host, config, calibration, observer, undo), undo, fixes, lambda: 0)
    plan = plan_for(host, config, calibration)
    fixes = host.fix(undo)
    session = attach(plan, observer, undo)
    assert isinstance(session.driver, Driver)
    limit_memory(session, session.driver, host, config)
    if plan.stand_ins.runs_ahead:
        host.run_ahead(undo, session, scheduled_skips(config), host.blocks[0])
    keys_values_bytes = host.extend_keys_values(undo, session.clock, plan.layers, plan.stand_ins.forecast)
    return Handle(session, undo, fixes, keys_values_bytes)


def _output(
    target: Any, host: Host, config: FastCacheConfig, calibration: Calibration | None, home: Home | None, undo: Undo
) -> Handle:
    """Skip whole calls of the transformer, and learn how."""
    known = output_calibration(host, config, calibration)
    fixes = host.fix(undo)
    session, pilot, effects = attach_output(host, config, known, undo)
    if host.can_run_ahead:
        host.run_ahead(undo, session, pilot.planned_skips, None)
    learner = None
    if (known is None or not known.identity) and config.test == "plan" and target is not host.transformer:
        home = home or (Home() if known is None else None)
        learner = Learner(target, host, config, session, pilot, effects, home)
        learner.attach(undo)
    return Handle(session, undo, fixes, lambda: 0, learner)


@contextlib.contextmanager
def fastcache(
    target: Any,
    config: FastCacheConfig | None = None,
    *,
    calibration: Calibration | None = None,
    observer: Observer | None = None,
    sigmas: Sequence[float] | None = None,
    home: Home | None = None,
    **options: Any,
) -> Iterator[Handle]:
    """Turn FastCache on, as `enable` does, inside a with block; leaving the block restores every module."""
    handle = enable(target, config, calibration=calibration, observer=observer, sigmas=sigmas, home=home, **options)
    try:
        yield handle
    except BaseException:
        try:
            handle.disable()
        except RestoreError as error:  # must not hide the exception that ends the block
            logger.error("%s", error)
        raise
    handle.disable()


@contextlib.contextmanager
def repaired(target: Any) -> Iterator[list[str]]:
    """Fix the known defects of xDiT inside a with block, without a cache; yield the names of the fixes."""
    with Undo() as undo:
        yield host_of(target).fix(undo)


_registration: list[Undo] = []
_applied: list[weakref.ref[Handle]] = []
_kept: list[list[Handle]] = []


def register() -> None:
    """Make `fastcache` a cache method of xDiT in this process, for scripts that call xDiT themselves.

    Afterwards `--cache fastcache` and `--cache_method fastcache` work in xDiT's parsers, runner models and pipeline
    wrappers. Call this before xfuser is used; a second call registers nothing anew.

    Raises:
        UsageError: there is no accelerator, and xfuser was imported before or is not installed.
    """
    cpu.prepare()
    if not _registration:
        _registration.append(Undo())
        registration.install(_apply, f"{__name__}.{register.__name__}", _registration[0])


def applied() -> list[Handle]:
    """Return the handles of the caches that xDiT turned on through `register`, in order.

    A pipeline holds its own until the cache is disabled; those of pipelines that are gone are gone as well.
    """
    return [handle for reference in _applied if (handle := reference())]


@contextlib.contextmanager
def keeping() -> Iterator[list[Handle]]:
    """Yield a list that gets, and keeps with its pipeline, the handle of each cache that xDiT turns on in the block."""
    handles: list[Handle] = []
    _kept.append(handles)
    try:
        yield handles
    finally:
        _kept.pop()


def _apply(pipe: Any, text: str | None) -> Handle:
    handle = enable(pipe, FastCacheConfig.from_text(text))
    if not _kept and world.is_first_rank():
        atexit.register(_sum_up, handle.report().counters)  # what it counts goes on; the handle would hold the model
    _applied[:] = [reference for reference in _applied if reference()] + [weakref.ref(handle)]
    for handles in _kept:
        handles.append(handle)
    return handle


def _sum_up(counters: Counters) -> None:
    if counters.requests:
        tell(str(counters))


def _check(host: Host, config: FastCacheConfig, calibration: Calibration | None) -> None:
    """Refuse a second cache, and options that need a scheduler where there is none."""
    if any(hasattr(transformer, _MARK) for transformer in host.transformers):
        raise UsageError("FastCache is already enabled on this transformer", "call handle.disable() first")
    if host.scheduler is None and host.sigmas is None and not timestep_of(signature_of(host.transformer)):
        raise UsageError(
            f"nothing tells the steps of {type(host.model).__name__} apart: there is no scheduler, and no argument for "
            "the timestep",
            "give sigmas=[...], the noise level of each step, 1 to 0",
        )
    planned = config.granularity == "output" or config.calibration or calibration or config.schedule
    if host.scheduler is None and host.sigmas is None and planned:
        raise UsageError(
            "a plan, a calibration or a schedule needs a scheduler to know the steps by",
            "enable FastCache on the pipeline, or give sigmas, the noise level of each step",
        )
