"""What happens to ranks in the middle of a request, and what must come of it."""

from __future__ import annotations

import inspect
import os
import subprocess
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from fastcache_xdit import FastCacheConfig, Handle, fastcache
from fastcache_xdit.decision.evidence import Decision
from fastcache_xdit.errors import RankDivergenceError
from fastcache_xdit.host.find import host_of
from fastcache_xdit.parallel.ledger import Entry
from tests import tiny
from tests.parallel.cached import asked
from tests.parallel.ranks import generate

VICTIM = 1  # the rank that a fault happens to, or the only one
STEP = 2  # behind which it happens


class Stop(Exception):
    """What a user's callback raises."""


def other_config(pipe: Any, config: dict) -> list[str]:
    """Enable with other options on one rank: every rank that works or learns with it must say so."""
    mine = {**config, "max_consecutive_skips": 2} if dist.get_rank() == VICTIM else config

    def enable() -> None:
        with fastcache(pipe, FastCacheConfig(**mine)):
            pass

    expected = VICTIM in host_of(pipe).topology.replica_ranks() or FastCacheConfig(**config).test == "plan"
    return _unlike(_divergence(enable), expected, "enabled with different options")


def _none(handle: Handle, pipe: Any, family: str, request: dict, config: dict) -> list[str]:
    return []


def _exception(handle: Handle, pipe: Any, family: str, request: dict, config: dict) -> list[str]:
    """Raise on every rank from the callback."""

    def stop() -> None:
        raise Stop

    try:
        generate(pipe, family, **_with(request, _callback(pipe, stop)))
    except Stop:
        return []
    return ["the callback's exception was lost"]


def _nan(handle: Handle, pipe: Any, family: str, request: dict, config: dict) -> list[str]:
    """Begin with noise that is no number: nobody may wait or raise, and nothing may stay."""
    noise = tiny.call_arguments(family, pixels=request["pixels"], batch=request["batch"])["latents"]
    latents = generate(pipe, family, **_with(request, {"latents": torch.full_like(noise, torch.nan)}))
    return ["not a number became one"] if latents is not None and latents.isfinite().all() else []


def _slow(handle: Handle, pipe: Any, family: str, request: dict, config: dict) -> list[str]:
    """Hold one rank up behind a step."""
    hold = (lambda: time.sleep(0.5)) if _is_victim() else (lambda: None)
    asked(handle, pipe, family, **_with(request, _callback(pipe, hold)))
    return []


def _paused(handle: Handle, pipe: Any, family: str, request: dict, config: dict) -> list[str]:
    """Stop the process of one rank for a second, whatever it is at."""
    if _is_victim():
        subprocess.Popen(["sh", "-c", f"sleep 0.1; kill -STOP {os.getpid()}; sleep 1; kill -CONT {os.getpid()}"])
    asked(handle, pipe, family, **request)
    return []


def _killed(handle: Handle, pipe: Any, family: str, request: dict, config: dict) -> list[str]:
    """Kill one rank; the others may not outlive it for long, and this function never returns."""
    if _is_victim():
        subprocess.Popen(["sh", "-c", f"sleep 0.2; kill -KILL {os.getpid()}"])
    while True:
        generate(pipe, family, **request)


def _wrong_ledger(handle: Handle, pipe: Any, family: str, request: dict, config: dict) -> list[str]:
    """Write down a decision on one rank that nobody took: those that decide with it must say so."""
    ledger = handle._session.record.ledger
    entry = Entry(STEP, "fused", None, "made up", *Decision(False, "made up"))
    action = (lambda: ledger.record(entry)) if dist.get_rank() == VICTIM else (lambda: None)
    told = _divergence(lambda: generate(pipe, family, **_with(request, _callback(pipe, action))))
    group = host_of(pipe).topology.agreeing_ranks(FastCacheConfig(**config).cfg_agreement)
    return _unlike(told, VICTIM in group and len(group) > 1, "diverged between ranks")


FAULTS: dict[str, Callable[[Handle, Any, str, dict, dict], list[str]]] = {
    "none": _none,
    "exception": _exception,
    "nan": _nan,
    "slow rank": _slow,
    "paused rank": _paused,
    "killed rank": _killed,
    "other config": _none,  # `other_config`, which needs caches of its own
    "wrong ledger": _wrong_ledger,
}


def _is_victim() -> bool:
    return dist.get_rank() == min(VICTIM, dist.get_world_size() - 1)


def _with(request: dict, call: dict) -> dict:
    return {**request, "call": call}


def _callback(pipe: Any, action: Callable[[], None]) -> dict[str, Any]:
    """Call arguments by which `action` runs behind step STEP."""

    def on_step_end(_: Any, step: int, __: Any, tensors: dict) -> dict:
        if step == STEP:
            action()
        return tensors

    if "callback_on_step_end" in inspect.signature(type(pipe).__call__).parameters:
        return {"callback_on_step_end": on_step_end}
    return {"callback": lambda step, *_: action() if step == STEP else None}


def _divergence(action: Callable[[], Any]) -> str:
    try:
        action()
    except RankDivergenceError as error:
        return str(error)
    return ""


def _unlike(told: str, expected: bool, words: str) -> list[str]:
    if expected == bool(told) and (words in told or not told):
        return []
    return [f"expected {'a divergence' if expected else 'none'}, was told: {told or 'nothing'}"]
