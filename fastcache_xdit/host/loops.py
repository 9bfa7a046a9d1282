"""Hears of every pipeline of diffusers that begins to denoise, whichever it is: another one may share a transformer."""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable
from typing import Any

from fastcache_xdit.undo import Undo

Hear = Callable[[Any], None]  # is given the pipeline

_hearers: weakref.WeakSet[Hear] = weakref.WeakSet()  # held by their undo logs, which go with their models
_patches: list[Undo] = []


def hear_loops(hear: Hear, undo: Undo) -> None:
    """Call `hear` with each pipeline that begins its loop over the steps, for as long as the undo log is open.

    They all open a progress bar there, by the one method that they inherit; it is patched while anybody listens.
    """
    pipelines = sys.modules.get("diffusers.pipelines.pipeline_utils")
    if pipelines is None:
        return
    if not _patches:
        _patches.append(Undo())
        _patches[0].set(pipelines.DiffusionPipeline, "progress_bar", _telling(pipelines.DiffusionPipeline.progress_bar))
    _hearers.add(hear)
    undo.callback(_forget, hear)


def _forget(hear: Hear) -> None:
    _hearers.discard(hear)
    if not _hearers and _patches:
        _patches.pop().close()


def _telling(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def progress_bar(self: Any, *args: Any, **kwargs: Any) -> Any:
        for hear in tuple(_hearers):
            hear(self)
        return original(self, *args, **kwargs)

    return progress_bar
