"""How a session learns of new requests and CFG branches from the scheduler and the transformer."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from fastcache_xdit.host.base import Host
from fastcache_xdit.host.loops import hear_loops
from fastcache_xdit.runtime.session import Session
from fastcache_xdit.undo import Undo
from fastcache_xdit.wrapping import Around


def sigmas_of(host: Host) -> Callable[[], list[float]] | None:
    """Return a function that reads the noise levels, 1 to 0, of the request; None in a loop that does not give them.

    Image-to-image requests begin later in the list of the scheduler.
    """
    scheduler, given = host.scheduler, host.sigmas
    if scheduler is None:
        return None if given is None else lambda: list(given)
    return lambda: levels_of(scheduler)[getattr(scheduler, "begin_index", None) or host.begin :]


def levels_of(scheduler: Any) -> list[float]:
    """Return the noise level, 1 to 0, of each step that the scheduler was set up for."""
    timesteps = [float(timestep) for timestep in scheduler.timesteps.tolist()]
    if min(timesteps, default=0.0) < 0:  # logarithms of EDM's sigmas
        data = float(getattr(scheduler.config, "sigma_data", 1.0))
        return [sigma / (sigma + data) for sigma in scheduler.sigmas.tolist()[: len(timesteps)]]
    train_steps = float(getattr(scheduler.config, "num_train_timesteps", 1000))
    levels = [timestep / train_steps for timestep in timesteps]
    if levels and levels[0] < levels[-1]:  # as Mochi counts
        levels = [1 - level for level in levels]
    return levels[:-1] if _ends_behind_the_last_step(scheduler, timesteps) else levels


def _ends_behind_the_last_step(scheduler: Any, timesteps: list[float]) -> bool:
    """Return whether the last timestep is where the last step arrives, as with SCM, and none of its own."""
    steps = getattr(scheduler, "num_inference_steps", None)
    is_longer = steps is not None and getattr(scheduler, "order", 1) == 1 and len(timesteps) == steps + 1
    return is_longer and timesteps[-1] == 0 and len(set(timesteps)) == len(timesteps)


def listen(host: Host, session: Session, undo: Undo) -> None:
    """Announce new requests and CFG branches to the session, for as long as the undo log is open.

    Requests are recognised by `scheduler.set_timesteps`, steps by `scheduler.step`, branches by diffusers'
    `cache_context`. They end with the call of the pipeline, or where another pipeline begins.
    """
    if host.scheduler is not None:

        def announced(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            session.announce()
            host.begin, host.step_arguments = 0, {}
            return original(*args, **kwargs)

        undo.wrap(host.scheduler, "set_timesteps", announced)
        undo.wrap(host.scheduler, "step", _handing_over(host, session))
    for transformer in host.transformers:
        if hasattr(transformer, "cache_context"):
            undo.wrap(transformer, "cache_context", _naming(session))
    if callable(host.pipe):
        undo.wrap(host.pipe, "__call__", _serving(session))
    hear_loops(functools.partial(_looping, host, session), undo)


def _serving(session: Session) -> Around:
    """Return what stands around the calls of a pipeline, which end their requests."""

    def call(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with session.serving():
            return original(*args, **kwargs)

    return call


def _looping(host: Host, session: Session, pipe: Any) -> None:
    """End the running request where another pipeline begins to call its transformer, by another scheduler.

    Without a scheduler of our own, a request begins there.
    """
    if not any(part is transformer for part in vars(pipe).values() for transformer in host.transformers):
        return
    if host.scheduler is None:
        session.announce()
    elif vars(pipe).get("scheduler") is not host.scheduler:
        session.end()


def _naming(session: Session) -> Around:
    """Return what stands around `cache_context` and names the branch to the session as well."""

    @contextlib.contextmanager
    def naming(original: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Iterator[None]:
        with session.clock.in_branch(name), original(name, *args, **kwargs):
            yield

    return naming


def _handing_over(host: Host, session: Session) -> Around:
    """Return what stands around `scheduler.step` and gives its output, the first argument, through the session."""
    signature = inspect.signature(host.scheduler.step)

    def handing_over(step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        call = signature.bind(*args, **kwargs).arguments
        if session.is_in_first_step and (_begins_late(host, call.get("timestep")) | _steps_otherwise(host, call)):
            session.plan_anew()
        sample = call.get("sample")
        if args:
            return session.hand_over(args[0], sample, lambda output: step(output, *args[1:], **kwargs))
        given = kwargs["model_output"]
        return session.hand_over(given, sample, lambda output: step(**{**kwargs, "model_output": output}))

    return handing_over


def _begins_late(host: Host, timestep: Any) -> bool:
    """Note where a request begins in its scheduler's timesteps, if not at the first one and nobody told the scheduler.

    Image to image and video to video leave timesteps out.
    """
    if getattr(host.scheduler, "begin_index", None) is None and timestep is not None:
        timesteps = host.scheduler.timesteps
        places = (timesteps == torch.as_tensor(timestep, device=timesteps.device)).nonzero().flatten().tolist()
        # of two places the second one, as diffusers' own schedulers take it, but for the very first timestep
        host.begin = 0 if not places or places[0] == 0 else places[:2][-1]
    return host.begin > 0


def _steps_otherwise(host: Host, call: Mapping[str, Any]) -> bool:
    """Note what numbers a request gives the scheduler's steps, which nothing tells before its first one."""
    others = {name: value for name, value in call.items() if name not in ("model_output", "timestep", "return_dict")}
    host.step_arguments = {name: value for name, value in others.items() if isinstance(value, int | float) and value}
    return bool(host.step_arguments)
