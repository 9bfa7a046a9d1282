"""What a cache is to the benchmark: a name, a sweep of its own knob, and a way to be switched on and off."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, eq=False)
class Site:
    """A pipeline that caches are tried on.

    Attributes:
        pipe: the pipeline; its `transformer` is what caches change.
        steps: number of denoising steps of a request.
        rehearse: runs one request on prompts that are not measured, for caches that calibrate.
    """

    pipe: Any
    steps: int
    rehearse: Callable[[], Any]


@dataclass(frozen=True)
class Setting:
    """One value of a cache's knob: keyword arguments of `Peer.apply`, and a label."""

    label: str
    knobs: dict[str, Any] = field(default_factory=dict)


# Switches the cache on for one request; gives the call arguments that it changes. Whatever it raises on entering is
# the cache's refusal, and is reported in its own words.
Apply = Callable[..., AbstractContextManager[dict[str, Any]]]


@dataclass(frozen=True)
class Peer:
    """One cache.

    Attributes:
        name: as it is called in tables; unique.
        package: the distribution it comes from, whose version is recorded.
        apply: called as `apply(site, **setting.knobs)`.
        settings: from the most careful to the boldest.
        parallel: it can run on several ranks without their deciding apart.
        ours: it is FastCache.
        note: what a reader should know of how it was run.
    """

    name: str
    package: str
    apply: Apply
    settings: tuple[Setting, ...]
    parallel: bool = False
    ours: bool = False
    note: str = ""
