"""Bring the cache into xDiT's own Ray workers, which are processes of their own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastcache_xdit.undo import Undo

REPORT = "fastcache_report"
Enable = Callable[[Any, "str | None"], Any]


@dataclass(frozen=True)
class Cached:
    """Replaces the pipeline class that xDiT sends to its workers, and loads it with the cache on.

    Attributes:
        kind: the pipeline class.
        enable: turns the cache on for a pipeline and returns its handle.
        text: of `--cache_config`.
    """

    kind: Any
    enable: Enable
    text: str | None

    def from_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """Load the pipeline in this worker with the cache on, and give the worker a method that reports."""
        from xfuser.ray.worker.worker import DiTWorker

        pipe = self.kind.from_pretrained(*args, **kwargs)
        if kwargs.get("return_org_pipeline"):
            return pipe  # of a worker that only decodes
        handle = self.enable(pipe, self.text)
        setattr(DiTWorker, REPORT, lambda worker: str(handle.report()))
        return pipe


def extend(enable: Enable, text: Callable[[], str | None], hook: str, undo: Undo) -> None:
    """Have `RayDiffusionPipeline` load cached pipelines, in workers that begin with `hook`; a second call does nothing.

    `text` returns `--cache_config` as the script's command line has it when a pipeline is loaded. `hook` names a
    function that makes xDiT importable without an accelerator. If the script started Ray itself, workers do not run it.
    """
    import ray
    from xfuser.ray.pipeline import pipeline_utils

    connect, kind = pipeline_utils.initialize_ray_cluster, pipeline_utils.RayDiffusionPipeline
    load = kind.from_pretrained.__func__
    if hasattr(load, "__wrapped__"):
        return

    @functools.wraps(connect)
    def initialize_ray_cluster(*args: Any, **kwargs: Any) -> Any:
        if not ray.is_initialized():
            ray.init(runtime_env={"worker_process_setup_hook": hook})
        return connect(*args, **kwargs)

    @functools.wraps(load)
    def from_pretrained(cls: Any, PipelineClass: Any, *args: Any, **kwargs: Any) -> Any:
        return load(cls, Cached(PipelineClass, enable, text()), *args, **kwargs)

    undo.set(pipeline_utils, "initialize_ray_cluster", initialize_ray_cluster)
    undo.set(kind, "from_pretrained", classmethod(from_pretrained))
