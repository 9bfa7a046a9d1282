"""xDiT's own Ray workers with the cache: they are processes of their own, into which the plugin has to be brought."""

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
    """Takes the place of the pipeline class that xDiT sends to its workers.

    Attributes:
        kind: the pipeline class.
        enable: turns the cache on for a pipeline and returns its handle.
        text: of `--cache_config`.
    """

    kind: Any
    enable: Enable
    text: str | None

    def from_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """Load the pipeline in this worker, cached; the worker then has a method that reports."""
        from xfuser.ray.worker.worker import DiTWorker

        pipe = self.kind.from_pretrained(*args, **kwargs)
        if kwargs.get("return_org_pipeline"):
            return pipe  # of a worker that only decodes
        handle = self.enable(pipe, self.text)
        setattr(DiTWorker, REPORT, lambda worker: str(handle.report()))
        return pipe


def extend(enable: Enable, text: Callable[[], str | None], hook: str, undo: Undo) -> None:
    """Have `RayDiffusionPipeline` load cached pipelines, in workers that begin with `hook`; a second call does nothing.

    `text` gives `--cache_config` as the script's command line has it by then. `hook` names a function that makes xDiT
    importable without an accelerator; where there is one, or the script has started Ray itself, workers do without.
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
