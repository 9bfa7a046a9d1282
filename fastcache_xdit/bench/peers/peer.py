"""Describe a cache to the benchmark: its name, a sweep of its own knob, and how to switch it on and off."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, eq=False)
class Subject:
    """The pipeline that a cache is tried on.

    Attributes:
        pipe: the pipeline; its `transformer` is what caches change.
        steps: number of denoising steps of a request.
        rehearse: run the request with this number on a prompt that is not measured, for caches that calibrate.
        model: name of the model.
    """

    pipe: Any
    steps: int
    rehearse: Callable[[int], Any]
    model: str = ""


@dataclass(frozen=True)
class Setting:
    """One value of a cache's knob: keyword arguments of `Peer.apply`, and a label."""

    label: str
    knobs: dict[str, Any] = field(default_factory=dict)


SHARES = (1 / 1.5, 1 / 2, 1 / 2.5, 1 / 3, 1 / 4, 1 / 5)  # of the steps or of the compute, where that is the knob


def shares(**more: Any) -> tuple[Setting, ...]:
    """Return a setting for each share, with further knobs."""
    return tuple(Setting(f"1/{1 / share:g}", {"share": share, **more}) for share in SHARES)


# Switch the cache on for one request, and give the call arguments that it changes. Whatever it raises on entering is
# the cache's refusal, reported in its own words.
Apply = Callable[..., AbstractContextManager[dict[str, Any]]]


@dataclass(frozen=True)
class Peer:
    """One cache.

    Attributes:
        name: in tables; unique.
        package: the distribution it comes from, whose version is recorded.
        apply: called as `apply(subject, **setting.knobs)`.
        settings: from the most careful to the boldest.
        parallel: its ranks decide alike, so that it can run on several.
        ours: it is FastCache.
        note: what readers should know about how it was run.
    """

    name: str
    package: str
    apply: Apply
    settings: tuple[Setting, ...]
    parallel: bool = False
    ours: bool = False
    note: str = ""
