"""Switches the cache on: for a pipeline or transformer in hand, and inside xDiT by name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.assembly import attach, plan_for
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.errors import UsageError
from fastcache_xdit.handle import Handle
from fastcache_xdit.host import cpu
from fastcache_xdit.host.base import Host
from fastcache_xdit.host.find import host_of
from fastcache_xdit.host.group import confirm_options
from fastcache_xdit.host.xdit import registration
from fastcache_xdit.parallel.ledger import Ledger
from fastcache_xdit.runtime.observer import Observer
from fastcache_xdit.undo import Undo

_MARK = "_fastcache_handle"


def enable(
    target: Any,
    config: FastCacheConfig | None = None,
    *,
    calibration: Calibration | None = None,
    observer: Observer | None = None,
) -> Handle:
    """Turn FastCache on for an xDiT pipeline, a diffusers pipeline, or a bare diffusers transformer.

    Under xDiT every rank must call it, after the pipeline was built and before it is called.

    Args:
        target: the pipeline or transformer.
        config: options; without it the defaults.
        calibration: takes the place of the file that `config.calibration` names.
        observer: sees what the cache does.
    Raises:
        UsageError: unknown model, unsupported parallel layout, another cache on, or FastCache already on.
        RankDivergenceError: on all ranks of the request, where their options differ.
    """
    config = config or FastCacheConfig()
    host = host_of(target)
    if host.topology.world_size > 1:
        confirm_options(host.topology, Ledger(repr(config)).stamp)
    _check(host, config, calibration)
    plan = plan_for(host, config, calibration)
    with contextlib.ExitStack() as on_error:
        undo = on_error.enter_context(Undo())
        fixes = host.fix(undo)
        session = attach(plan, observer, undo)
        if plan.stand_ins.alone:
            host.run_ahead(undo, session, config)
        bytes_beside = host.extend_keys_values(undo, session.clock, plan.layers, plan.stand_ins.forecast)
        handle = Handle(session, undo, fixes, bytes_beside)
        undo.set(host.transformer, _MARK, handle)
        on_error.pop_all()
    return handle


@contextlib.contextmanager
def fastcache(
    target: Any,
    config: FastCacheConfig | None = None,
    *,
    calibration: Calibration | None = None,
    observer: Observer | None = None,
) -> Iterator[Handle]:
    """Turn FastCache on, as `enable` does, for the length of a with block; leaving it restores every module."""
    handle = enable(target, config, calibration=calibration, observer=observer)
    try:
        yield handle
    finally:
        handle.disable()


@contextlib.contextmanager
def repaired(target: Any) -> Iterator[list[str]]:
    """Cure xDiT's known defects without a cache: what a cached run is compared with. Yields the fixes' names."""
    with Undo() as undo:
        yield host_of(target).fix(undo)


_registration: list[Undo] = []
_applied: list[Handle] = []


def register() -> None:
    """Make `fastcache` a cache method of xDiT in this process, for scripts that call xDiT themselves.

    Afterwards `--cache fastcache` and `--cache_method fastcache` work in xDiT's parsers, runner models and pipeline
    wrappers. Call it before xfuser is used; a second call does nothing.

    Raises:
        UsageError: no accelerator here, and xfuser was imported before, or is not installed.
    """
    cpu.prepare()
    if not _registration:
        _registration.append(Undo())
        registration.install(_apply, f"{__name__}.{register.__name__}", _registration[0])


def applied() -> list[Handle]:
    """Return handles of the caches that xDiT switched on through the registration, in order."""
    return list(_applied)


def _apply(pipe: Any, text: str | None) -> Handle:
    _applied.append(enable(pipe, FastCacheConfig.from_text(text)))
    return _applied[-1]


def _check(host: Host, config: FastCacheConfig, calibration: Calibration | None) -> None:
    """Raise UsageError for an unknown model, a cache that is on, and what a user's own loop cannot have."""
    _ = host.spec
    if hasattr(host.transformer, _MARK):
        raise UsageError("FastCache is already enabled on this transformer", "call handle.disable() first")
    if host.scheduler is None and (config.calibration or calibration or config.schedule):
        raise UsageError(
            "a calibration or a schedule needs a scheduler to know the steps by", "enable FastCache on the pipeline"
        )
