"""Diffusers' caches on any transformer.

A class without diffusers' cache mixin (PixArt is one) is lent it, and its calls a cache context with the step's index
and noise level, which its pipeline does not give: every cache gets its best chance.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

from fastcache_xdit.bench.peers.peer import Site
from fastcache_xdit.undo import Undo

LENT = "diffusers' cache mixin and a cache context are lent to transformers that lack them"


@contextlib.contextmanager
def enabled(site: Site, config: Any) -> Iterator[dict[str, Any]]:
    """A cache of diffusers, by its config, for the length of a with block."""
    transformer = site.pipe.transformer
    with _mixin_lent(transformer) as lent:
        transformer.enable_cache(config)
        try:
            with _contexts_given(site) if lent else contextlib.nullcontext():
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
def _contexts_given(site: Site) -> Iterator[None]:
    transformer = site.pipe.transformer
    original = transformer.forward

    @functools.wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        index = step_of(site)
        sigma = float(site.pipe.scheduler.sigmas[index])
        with transformer.cache_context("both", step_index=index, num_inference_steps=site.steps, sigma=sigma):
            return original(*args, **kwargs)

    with Undo() as undo:
        undo.set(transformer, "forward", forward)
        yield


def step_of(site: Site) -> int:
    """Index of the step that is being computed."""
    return site.pipe.scheduler.step_index or 0


def timestep_of(site: Site) -> int:
    """Its timestep, 1000 to 0."""
    return int(site.pipe.scheduler.timesteps[step_of(site)])
