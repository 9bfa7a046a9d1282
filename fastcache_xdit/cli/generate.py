"""`generate`: images for prompts with any pipeline that xDiT has a class for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastcache_xdit.cli.arguments import cache_config, is_first_rank, parse, read_options
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.evaluate import compare, summary
from fastcache_xdit.evaluate.output import OutputFolder
from fastcache_xdit.evaluate.quality import shapes_accuracy
from fastcache_xdit.evaluate.report import write_report
from fastcache_xdit.host.xdit import engine, layout, registration
from fastcache_xdit.host.xdit.pipeline import topology
from fastcache_xdit.models.catalogue import known_models
from fastcache_xdit.plugin import register
from fastcache_xdit.reference.loading import SHIPPED, generation_defaults, model_path

CALL = ("num_inference_steps", "guidance_scale", "height", "width", "max_sequence_length", "negative_prompt")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options, beside xDiT's engine flags."""
    own = parser.add_argument_group("fastcache_xdit generate")
    own.add_argument("--config", metavar="FILE.yaml", help="options by name; flags win over it")
    own.add_argument("--prompts", metavar="FILE.txt", help="one prompt per line; # begins a comment line")
    own.add_argument("--compare", action="store_true", help="also run uncached with the same seeds, and measure")
    own.add_argument("--output", default="results/generate", metavar="FOLDER", help="default: %(default)s")
    own.add_argument("--overwrite", action="store_true", help="replace the results of an earlier job in FOLDER")
    own.add_argument("--batch_size", type=int, default=1, help="prompts per pipeline call; default: %(default)s")
    own.add_argument("--dtype", choices=sorted(engine.DTYPES), help="default: bfloat16, float32 without accelerator")


def main(argv: list[str]) -> int:
    """Check everything that can be checked, then load, generate, measure and write the results."""
    engine.prepare()
    register()
    options = _options(argv)
    job = _Job(options)
    runner = engine.Engine(job.model, options, options["dtype"] or engine.default_dtype())
    job.run(runner)
    engine.finish()
    return 0


class _Job:
    """A checked command line. Raises ValueError, before anything is loaded, for what cannot work."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.config = _cache(options)
        self.prompts = _prompts(options)
        self.shipped = options["model"] in SHIPPED
        self.model = _model(options["model"])
        self.compare = options["compare"]
        if options["batch_size"] < 1:
            raise ValueError(f"batch_size={options['batch_size']} is not possible; set 1 or more")
        layout.check_degrees(options, engine.world_size())
        if Path(self.model).is_dir():
            layout.check_model(Path(self.model), options, known_models() if self.config else [])
        self.call = _call(options)
        self.output = OutputFolder(options["output"], options["overwrite"])
        self.batches = engine.batches(self.prompts, options["batch_size"] * _replicas(options), options["seed"])

    def run(self, runner: engine.Engine) -> None:
        """Generate on every rank; the first one writes the figures."""
        runner.pipe.set_progress_bar_config(disable=not is_first_rank(), leave=False)
        result = self._generate(runner)
        agreement = self.config.cfg_agreement if self.config else True
        views = engine.gather(summary.view(result, topology(), agreement))
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
            "world_size": engine.world_size(),
            "parallel": layout.degrees(self.options),
            "num_inference_steps": self.call["num_inference_steps"],
            "num_images": len(self.prompts),
            "batch_size": self.options["batch_size"],
            "seed": self.options["seed"],
            "cache_config": self.config.to_dict() if self.config else None,
        }


def _options(argv: list[str]) -> dict[str, Any]:
    """Command line over config file over the shipped model's own defaults over xDiT's."""
    from xfuser import xFuserArgs
    from xfuser.config import FlexibleArgumentParser

    parser = FlexibleArgumentParser(prog="fastcache_xdit generate", description=__doc__)
    xFuserArgs.add_cli_args(parser)
    add_arguments(parser)
    parser._option_string_actions["--model"].required = False
    parser.set_defaults(model=None)
    file, model = _look_ahead(argv)
    values = read_options(parser, file) if file else {}
    model = model or values.get("model")
    defaults = generation_defaults(model) if model in SHIPPED else {}
    parser.set_defaults(**{name: value for name, value in defaults.items() if name in CALL} | values)
    return vars(parse(parser, argv)) | {"defaults": defaults}


def _look_ahead(argv: list[str]) -> tuple[str | None, str | None]:
    """--config and --model, which decide the defaults of everything else."""
    ahead = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    ahead.add_argument("--config", nargs="?")
    ahead.add_argument("--model", nargs="?")
    found, _ = ahead.parse_known_args(argv)
    return found.config, found.model


def _model(name: str | None) -> str:
    """A folder or a hub id."""
    what = f"a folder, a hub id like ORG/NAME, or a shipped model: {', '.join(SHIPPED)}"
    if not name:
        raise ValueError(f"no model: give --model with {what}")
    if name in SHIPPED:
        return str(model_path(name))
    if not Path(name).is_dir() and (name.startswith(("/", ".", "~")) or name.count("/") != 1):
        raise ValueError(f"no such model: {name}; give {what}")
    return name


def _call(options: dict[str, Any]) -> dict[str, Any]:
    """Arguments of every pipeline call; those that only the shipped model knows come along."""
    call = options["defaults"] | {name: options[name] for name in CALL if options[name] not in (None, "", [])}
    for name in ("num_inference_steps", "height", "width"):
        if call[name] < 1:
            raise ValueError(f"{name}={call[name]} is not possible; set 1 or more")
    return call


def _cache(options: dict[str, Any]) -> FastCacheConfig | None:
    method = options["cache_method"]
    if method not in (None, registration.METHOD):
        raise ValueError(f"generate knows --cache fastcache only, not {method}; xDiT's own methods work with run")
    if method is None:
        if options["compare"]:
            raise ValueError("--compare compares the cache with an uncached run; add --cache fastcache")
        return None
    layout.check_cache(options)
    config = cache_config(options["cache_config"])
    layout.check_decision(config, options["pipefusion_parallel_degree"])
    return config


def _prompts(options: dict[str, Any]) -> list[str]:
    prompts = list(options["prompt"] or [])
    if options["prompts"]:
        path = Path(options["prompts"])
        if not path.is_file():
            raise ValueError(f"no such prompts file: {path}")
        lines = [line.strip() for line in path.read_text().splitlines()]
        prompts += [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise ValueError("nothing to generate: give --prompt TEXT or --prompts FILE with one prompt per line")
    return prompts


def _replicas(options: dict[str, Any]) -> int:
    return options["data_parallel_degree"] or 1
