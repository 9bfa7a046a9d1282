"""`generate`: images for prompts with any pipeline that xDiT has a class for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastcache_xdit.cli.arguments import is_first_rank
from fastcache_xdit.cli.pipeline import (
    add_pipeline_arguments,
    call_arguments,
    chosen_cache,
    model_folder,
    pipeline_options,
    prompts_of,
)
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.errors import UsageError
from fastcache_xdit.evaluate import compare, summary
from fastcache_xdit.evaluate.output import OutputFolder
from fastcache_xdit.evaluate.quality import shapes_accuracy
from fastcache_xdit.evaluate.report import write_report
from fastcache_xdit.host.xdit import engine, layout, loading, world
from fastcache_xdit.host.xdit.host import topology
from fastcache_xdit.models.catalogue import known_models
from fastcache_xdit.plugin import register
from fastcache_xdit.shipped import SHIPPED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options, beside xDiT's engine flags."""
    own = parser.add_argument_group("fastcache_xdit generate")
    add_pipeline_arguments(own, batch_size=1)
    own.add_argument("--compare", action="store_true", help="also run uncached with the same seeds, and measure")
    own.add_argument("--output", default="results/generate", metavar="FOLDER", help="default: %(default)s")
    own.add_argument("--overwrite", action="store_true", help="replace the results of an earlier job in FOLDER")


def main(argv: list[str]) -> int:
    """Check everything that can be checked, then load, generate, measure and write the results."""
    register()
    options = pipeline_options("generate", argv, add_arguments)
    job = _Job(options)
    runner = engine.Engine(job.model, options, options["dtype"] or loading.default_dtype())
    job.run(runner)
    world.finish()
    return 0


class _Job:
    """A checked command line. Raises UsageError, before anything is loaded, for what cannot work."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.config = _cache(options)
        self.prompts = prompts_of(options)
        self.shipped = options["model"] in SHIPPED
        self.model = model_folder(options["model"])
        self.compare = options["compare"]
        layout.check_degrees(options, world.size())
        if Path(self.model).is_dir():
            layout.check_model(Path(self.model), options, known_models() if self.config else [])
        self.call = call_arguments(options)
        self.output = OutputFolder(options["output"], options["overwrite"])
        self.batches = engine.batches(self.prompts, options["batch_size"] * _replicas(options), options["seed"])

    def run(self, runner: engine.Engine) -> None:
        """Generate on every rank; the first one writes the figures."""
        runner.pipe.set_progress_bar_config(disable=not is_first_rank(), leave=False)
        result = self._generate(runner)
        agreement = self.config.cfg_agreement if self.config else True
        views = world.gather_objects(summary.view(result, topology(), agreement))
        if views:
            self._write(views)

    def _generate(self, runner: engine.Engine) -> compare.Comparison:
        if self.compare and self.config:
            return compare.compare(runner, self.batches, self.config, self.call, self.output.keep)
        result = compare.Comparison()
        for batch in self.batches:
            for index, image in self._one(runner, batch, result.cached).items():
                self.output.keep("cached", index, image)
        return result

    def _one(self, runner: engine.Engine, batch: engine.Batch, run: compare.Run) -> dict[int, Any]:
        if self.config:
            return compare.run_cached(runner, batch, self.config, self.call, run)
        return compare.run_uncached(runner, batch, self.call, run, repair=False)

    def _write(self, views: Sequence[summary.View]) -> None:
        figures = {**self._settings(), "seconds": summary.seconds_of(views, "cached")}
        if self.config:
            figures |= summary.cache_figures(views, self.call["num_inference_steps"])
        if self.compare:
            figures |= summary.quality_figures(views, self.prompts, shapes_accuracy if self.shipped else None)
        self.output.write_summary(figures)
        write_report(self.output.path / "report.html", figures, self.prompts, views)
        print(summary.line(figures, self.output.path / "report.html"))

    def _settings(self) -> dict[str, Any]:
        return {
            "model": self.options["model"],
            "world_size": world.size(),
            "parallel": layout.degrees(self.options),
            "num_inference_steps": self.call["num_inference_steps"],
            "num_images": len(self.prompts),
            "batch_size": self.options["batch_size"],
            "seed": self.options["seed"],
            "cache_config": self.config.to_dict() if self.config else None,
        }


def _cache(options: dict[str, Any]) -> FastCacheConfig | None:
    config = chosen_cache("generate", options)
    if options["compare"] and config is None:
        raise UsageError("--compare compares the cache with an uncached run", "add --cache fastcache")
    return config


def _replicas(options: dict[str, Any]) -> int:
    return options["data_parallel_degree"] or 1
