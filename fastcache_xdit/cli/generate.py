"""`generate`: images for prompts with any pipeline that xDiT has a class for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastcache_xdit.bench.peers.environment import circumstances
from fastcache_xdit.cli.cache import chosen_cache
from fastcache_xdit.cli.options.clips import check_clips
from fastcache_xdit.cli.options.generate import GenerateOptions, add_arguments
from fastcache_xdit.cli.options.values import model_folder
from fastcache_xdit.cli.pipeline import (
    call_arguments,
    pipeline_options,
)
from fastcache_xdit.cli.progress import progress, stage
from fastcache_xdit.cli.prompts import prompts_of
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.errors import UsageError
from fastcache_xdit.evaluate import closing, compare, summary
from fastcache_xdit.evaluate.learning import learning_figures
from fastcache_xdit.evaluate.output import OutputFolder
from fastcache_xdit.evaluate.quality import shapes_accuracy
from fastcache_xdit.evaluate.report import write_report
from fastcache_xdit.host.xdit import checkpoint, engine, layout, world
from fastcache_xdit.host.xdit.host import topology
from fastcache_xdit.host.xdit.watch import Watch
from fastcache_xdit.jobs.recipe import check_limits
from fastcache_xdit.jobs.submit import wrong_size
from fastcache_xdit.plugin import register
from fastcache_xdit.shipped import SHIPPED

INCOMPLETE = 1  # exit code where an image is not finite


def main(argv: list[str]) -> int:
    """Check everything that can be checked, then load, generate, measure and write the results."""
    register()
    options = pipeline_options(GenerateOptions, argv, add_arguments)
    job = _Job(options)
    stage(f"loading {options.model}")
    complete = job.run(engine.Engine(job.model, options.xdit, options.dtype, options.fps))
    world.finish()
    return 0 if complete else INCOMPLETE


class _Job:
    """A checked command line. Raises UsageError, before anything is loaded, for what cannot work."""

    def __init__(self, options: GenerateOptions) -> None:
        self.options = options
        self.config = _cache(options)
        self.prompts = prompts_of(options)
        self.shipped = options.model in SHIPPED
        self.model = model_folder(options.model)
        layout.check_degrees(options.layout, world.size())
        self.call = call_arguments(options)
        if Path(self.model).is_dir():
            checkpoint.check_model(Path(self.model), options.layout)
            checkpoint.check_call(Path(self.model), options.layout, self.call)
        check_limits(self.call, options.seed, len(self.prompts))
        self._check_size()
        check_clips(options.fps)
        self.output = OutputFolder(options.output, options.overwrite)
        together = options.batch_size * options.layout.data_parallel_degree
        self.batches = engine.batches(self.prompts, together, options.seed)

    def _check_size(self) -> None:
        pixels = checkpoint.pixels_per_token(Path(self.model)) if Path(self.model).is_dir() else 1
        width, height = (self.call.get(name) or 0 for name in ("width", "height"))
        if reason := wrong_size(width, height, pixels):
            raise UsageError(reason)

    def run(self, running: engine.Engine) -> bool:
        """Generate on every rank; the first one writes the figures, and returns whether all images are finite."""
        running.pipe.set_progress_bar_config(disable=True)  # it would begin anew with each call
        if world.is_first_rank():
            self.output.clear()
        twice = ", each also uncached" if self.options.compare else ""
        calls = f"{len(self.batches)} call{'s' * (len(self.batches) > 1)}"
        stage(f"generating {len(self.prompts)} in {calls}{twice}")
        with Watch().following(running.pipe):
            result = self._generate(running)
        agreement = self.config.cfg_agreement if self.config else True
        views = world.gather_objects(summary.view(result, topology(), agreement))
        if views:
            self._write(views)
        return not summary.not_finite(views or ())

    def _generate(self, running: engine.Engine) -> compare.Comparison:
        if self.config is None:
            return compare.run_plain(running, self.batches, self.call, self.output.keep, progress)
        compares = self.options.compare
        return compare.run_cached(running, self.batches, self.config, self.call, self.output.keep, compares, progress)

    def _write(self, views: Sequence[summary.View]) -> None:
        figures = {**self._settings(), **summary.clip_figures(views), "seconds": summary.seconds_of(views, "cached")}
        if self.config:
            figures |= summary.cache_figures(views, self.call["num_inference_steps"])
        if self.options.compare:
            figures |= summary.quality_figures(views, self.prompts, shapes_accuracy if self.shipped else None)
        if self.config:
            figures |= learning_figures(views, figures)
        if broken := summary.not_finite(views):
            figures["not_finite"] = broken
        self.output.write_summary(figures)
        write_report(self.output.path / "report.html", figures, self.prompts, views)
        print(closing.line(figures, self.output.path / "report.html"))

    def _settings(self) -> dict[str, Any]:
        return {
            "model": self.options.model,
            "world_size": world.size(),
            "parallel": self.options.layout.degrees,
            "num_inference_steps": self.call["num_inference_steps"],
            "num_images": len(self.prompts),
            "batch_size": self.options.batch_size,
            "seed": self.options.seed,
            "cache_config": self.config.to_dict() if self.config else None,
            **circumstances(world.size()),
        }


def _cache(options: GenerateOptions) -> FastCacheConfig | None:
    config = chosen_cache("generate", options)
    if options.compare and config is None:
        raise UsageError("--compare compares the cache with an uncached run", "add --cache fastcache")
    return config
