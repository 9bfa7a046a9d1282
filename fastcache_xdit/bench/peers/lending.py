"""Lend diffusers' caches what a transformer lacks, so that each gets its best chance.

A class without diffusers' cache mixin (PixArt is one) is lent it, and its calls run in a cache context with the step's
index and sigma, which its pipeline does not give.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

from fastcache_xdit.bench.peers.peer import Subject
from fastcache_xdit.undo import Undo

LENT = "diffusers' cache mixin and a cache context are lent to transformers that lack them"


@contextlib.contextmanager
def enabled(subject: Subject, config: Any) -> Iterator[dict[str, Any]]:
    """Switch a cache of diffusers on, by its config, for the length of a with block."""
    transformer = subject.pipe.transformer
    with _mixin_lent(transformer) as lent:
        transformer.enable_cache(config)
        try:
            with _contexts_given(subject) if lent else contextlib.nullcontext():
                yield {}
        finally:
            transformer.disable_cache()


@contextlib.contextmanager
def _mixin_lent(transformer: Any) -> Iterator[bool]:
    from diffusers.models.cache_utils import CacheMixin

    kind = type(transformer)
    if issubclass(kind, CacheMixin):
        yield False
        return
    transformer.__class__ = type(kind.__name__, (kind, CacheMixin), {"__module__": kind.__module__})
    try:
        yield True
    finally:
        transformer.__class__ = kind


@contextlib.contextmanager
def _contexts_given(subject: Subject) -> Iterator[None]:
    transformer = subject.pipe.transformer
    original = transformer.forward

    @functools.wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        index = step_of(subject)
        sigma = float(subject.pipe.scheduler.sigmas[index])
        with transformer.cache_context("both", step_index=index, num_inference_steps=subject.steps, sigma=sigma):
            return original(*args, **kwargs)

    with Undo() as undo:
        undo.set(transformer, "forward", forward)
        yield


def step_of(subject: Subject) -> int:
    """Return the index of the running step."""
    return subject.pipe.scheduler.step_index or 0


def timestep_of(subject: Subject) -> int:
    """Return the timestep of the running step, 1000 to 0."""
    return int(subject.pipe.scheduler.timesteps[step_of(subject)])
