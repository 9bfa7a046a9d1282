"""`bench`: what stands in for blocks, and what the significance test promises, on prompts never calibrated on."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.cli.arguments import is_first_rank
from fastcache_xdit.cli.pipeline import add_pipeline_arguments, call_arguments, model_folder, pipeline_options
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.host.xdit import engine
from fastcache_xdit.plugin import register
from fastcache_xdit.reference.loading import SHIPPED, calibration_path, tuned_configs
from fastcache_xdit.reference.sampling import prompts
from fastcache_xdit.tuning.approximations import BUDGETS, Bench, Row, approximations, significance, stand_in_cost
from fastcache_xdit.tuning.calibrate import versions
from fastcache_xdit.tuning.frontier import draw
from fastcache_xdit.tuning.runner import Runner

WHAT = ("approximations", "significance")
ALPHAS = (0.01, 0.05, 0.2)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options, beside xDiT's engine flags."""
    own = parser.add_argument_group("fastcache_xdit bench")
    add_pipeline_arguments(own, batch_size=8)
    own.add_argument("--steps", type=int, nargs="+", default=[20, 30, 50], help="default: 20 30 50")
    own.add_argument("--count", type=int, default=32, help="held-out prompts; default: %(default)s")
    own.add_argument("--tolerance", type=float, default=0.02, help="of the significance test; default: %(default)s")
    own.add_argument("--output", metavar="FOLDER", default="results/bench", help="default: %(default)s")


def main(argv: list[str]) -> int:
    """Run one benchmark; the first rank prints, and writes JSON and a figure."""
    if not argv or argv[0] not in WHAT:
        raise ValueError(f"which benchmark? give one of {', '.join(WHAT)}")
    engine.prepare()
    register()
    options = pipeline_options("bench", argv[1:], add_arguments)
    model, call = model_folder(options["model"]), call_arguments(options)
    if options["model"] not in SHIPPED:
        raise ValueError(f"bench knows held-out prompts of shipped models only: {', '.join(SHIPPED)}")
    folder = Path(options["output"])
    runner = Runner(engine.Engine(model, options, options["dtype"] or engine.default_dtype()), call)
    runner.engine.pipe.set_progress_bar_config(disable=True)
    batches = engine.batches(prompts(options["count"], options["seed"]), options["batch_size"], options["seed"])
    results = (_approximations if argv[0] == "approximations" else _significance)(runner, batches, options)
    extra = {"stand_in_cost": _cost(runner, batches, options)} if argv[0] == "approximations" else {}
    if is_first_rank():
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{argv[0]}.json"
        settings = {"model": options["model"], "count": options["count"], "seed": options["seed"], **versions()}
        path.write_text(json.dumps({**settings, **extra, "rows": results}, indent=1) + "\n")
        if argv[0] == "approximations":
            draw([Row(**row) for row in results], folder / "frontier.png")
        print(f"fastcache: -> {path}")
    engine.finish()
    return 0


def _approximations(runner: Runner, batches: Sequence[engine.Batch], options: dict[str, Any]) -> list[dict[str, Any]]:
    paths = tuned_configs(options["model"])
    tuned = {budget: FastCacheConfig.from_file(paths[budget]) for budget in BUDGETS if budget in paths}
    rows: list[Row] = []
    _say(f"{'steps':>5} {'budget':>7} {'FLOPs':>6}  {'stand-in':<22} {'PSNR dB':>8} {'worst':>6}")
    for steps in options["steps"]:
        bench = Bench(runner.steps(steps), batches, str(calibration_path(options["model"])))
        rows += approximations(bench, {b: c for b, c in tuned.items() if steps in (c.schedule or {})}, _show)
    return [row.to_dict() for row in rows]


def _cost(runner: Runner, batches: Sequence[engine.Batch], options: dict[str, Any]) -> dict[str, float]:
    cost = stand_in_cost(runner, batches[0], str(calibration_path(options["model"])))
    shares = f"{cost['of_one_block']:.1%} of one block, {cost['of_replaced_blocks']:.2%} of those that it replaces"
    _say(f"the fitted stand-in takes {shares}")
    return cost


def _show(row: Row) -> None:
    line = f"{row.steps:>5} {f'1/{1 / row.budget:g}':>7} {row.compute_ratio:>6.1%}  {row.stand_in:<22}"
    _say(f"{line} {row.psnr_mean:>8.2f} {row.psnr_min:>6.1f}")


def _significance(runner: Runner, batches: Sequence[engine.Batch], options: dict[str, Any]) -> list[dict[str, Any]]:
    path = calibration_path(options["model"])
    calibration, rows = Calibration.load(path), []
    _say(f"{'steps':>5} {'alpha':>6} {'skipped':>8}  over tolerance: {'promised':>9} {'measured':>9}")
    for steps in options["steps"]:
        for alpha in ALPHAS:
            row = significance(runner.steps(steps), batches, calibration, str(path), options["tolerance"], alpha)
            rows.append({"steps": steps, **row})
            _say(f"{steps:>5} {alpha:>6g} {row['skipped']:>8.1%}  {row['promised']:>25.1%} {row['measured']:>9.1%}")
    return rows


def _say(line: str) -> None:
    if is_first_rank():
        print(line, flush=True)
