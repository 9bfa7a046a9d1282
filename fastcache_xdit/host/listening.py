"""How a session learns of new requests and CFG branches from the scheduler and the transformer."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from fastcache_xdit.host.base import Host
from fastcache_xdit.runtime.session import Session
from fastcache_xdit.undo import Undo


def sigmas_of(host: Host) -> Callable[[], list[float]] | None:
    """Return a function that reads the noise levels, 1 to 0, of the request; None in a loop that does not give them.

    Image-to-image requests begin later in the list of the scheduler.
    """
    scheduler, given = host.scheduler, host.sigmas
    if scheduler is None:
        return None if given is None else lambda: list(given)
    train_steps = float(getattr(scheduler.config, "num_train_timesteps", 1000))

    def sigmas() -> list[float]:
        timesteps = scheduler.timesteps[getattr(scheduler, "begin_index", None) or 0 :]
        return [float(timestep) / train_steps for timestep in timesteps.tolist()]

    return sigmas


def listen(host: Host, session: Session, undo: Undo) -> None:
    """Announce new requests and CFG branches to the session, for as long as the undo log is open.

    Requests are recognised by `scheduler.set_timesteps`, steps by `scheduler.step`, branches by diffusers'
    `cache_context`.
    """
    if host.scheduler is not None:
        set_timesteps = host.scheduler.set_timesteps

        @functools.wraps(set_timesteps)
        def announced(*args: Any, **kwargs: Any) -> Any:
            session.announce()
            return set_timesteps(*args, **kwargs)

        undo.set(host.scheduler, "set_timesteps", announced)
        undo.set(host.scheduler, "step", _handing_over(host.scheduler.step, host.scheduler, session))
    for transformer in host.transformers:
        if cache_context := getattr(transformer, "cache_context", None):
            undo.set(transformer, "cache_context", _naming(cache_context, session))


def _naming(cache_context: Callable[..., Any], session: Session) -> Callable[..., Any]:
    """Return a `cache_context` that names the branch to the session as well."""

    @contextlib.contextmanager
    def naming(name: str, *args: Any, **kwargs: Any) -> Iterator[None]:
        with session.clock.in_branch(name), cache_context(name, *args, **kwargs):
            yield

    return naming


def _handing_over(step: Callable[..., Any], scheduler: Any, session: Session) -> Callable[..., Any]:
    """Return a `scheduler.step` that is given its output, the first argument, through the session."""
    signature = inspect.signature(step)

    @functools.wraps(step)
    def handing_over(*args: Any, **kwargs: Any) -> Any:
        call = signature.bind(*args, **kwargs).arguments
        if not session.is_bypassed and _begins_late(getattr(scheduler, "module", scheduler), call.get("timestep")):
            session.begin_late()
        if args:
            return session.hand_over(args[0], lambda output: step(output, *args[1:], **kwargs))
        return session.hand_over(kwargs["model_output"], lambda output: step(**{**kwargs, "model_output": output}))

    return handing_over


def _begins_late(scheduler: Any, timestep: Any) -> bool:
    """Tell a scheduler that its request begins behind its first timestep, as some pipelines do not; whether it does.

    Image to image and video to video leave timesteps out, by which a scheduler looks up where it is. It is told what it
    would find.
    """
    if getattr(scheduler, "begin_index", 0) is not None or scheduler.step_index is not None:
        return False
    first = int((scheduler.timesteps == timestep).int().argmax())
    if first:
        scheduler.set_begin_index(first)
    return first > 0
