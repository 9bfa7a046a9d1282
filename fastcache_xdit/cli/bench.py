"""`bench`: what stands in for blocks, and what the significance test promises, on prompts never calibrated on."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.bench.approximations import Bench, Row, approximations, significance, stand_in_cost
from fastcache_xdit.bench.batch import memory, replicas
from fastcache_xdit.bench.costs import costs
from fastcache_xdit.bench.frontier import draw
from fastcache_xdit.bench.overhead import overhead
from fastcache_xdit.bench.tokens import BUDGETS, SETTINGS, PartialBench
from fastcache_xdit.bench.tokens import Row as TokensRow
from fastcache_xdit.cli import bench_peers, bench_speed
from fastcache_xdit.cli.arguments import check_least, is_first_rank
from fastcache_xdit.cli.batch_arguments import recipe_of
from fastcache_xdit.cli.pipeline import add_pipeline_arguments, call_arguments, model_folder, pipeline_options
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.errors import UsageError
from fastcache_xdit.evaluate.token_maps import TokenMap, sheet
from fastcache_xdit.host.xdit import engine, layout, loading, world
from fastcache_xdit.jobs.recipe import Recipe
from fastcache_xdit.plugin import register
from fastcache_xdit.shipped import SHIPPED, calibration_path, held_out_scenes, tuned_configs
from fastcache_xdit.tuning.calibrate import versions
from fastcache_xdit.tuning.runner import Runner

WHAT = ("peers", "speed", "approximations", "significance", "tokens", "costs", "overhead", "batch")
APART = {"peers": bench_peers.main, "speed": bench_speed.main}  # with options of their own
CALIBRATED = ("approximations", "significance", "tokens")
REPLICAS, MEMORY_ITEMS = (1, 2), 200  # of bench batch
ALPHAS = (0.01, 0.05, 0.2)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options, beside xDiT's engine flags."""
    own = parser.add_argument_group("fastcache_xdit bench")
    add_pipeline_arguments(own, batch_size=8)
    own.add_argument("--steps", type=int, nargs="+", default=[20, 30, 50], help="default: 20 30 50")
    own.add_argument("--count", type=int, default=32, help="held-out prompts; default: %(default)s")
    own.add_argument("--tolerance", type=float, default=0.005, help="of the significance test; default: %(default)s")
    own.add_argument("--settings", nargs="+", choices=SETTINGS, default=SETTINGS, help="of bench tokens; default: both")
    own.add_argument(
        "--budgets", type=_share, nargs="+", default=BUDGETS, help="of bench tokens: shares of block FLOPs"
    )
    own.add_argument("--repeats", type=int, default=3, help="timings of bench tokens; default: %(default)s")
    own.add_argument("--maps", metavar="FILE", help="of calibrate --maps, for the paper's W H + b with whole matrices")
    own.add_argument("--output", metavar="FOLDER", default="results/bench", help="default: %(default)s")


def main(argv: list[str]) -> int:
    """Run one benchmark; the first rank prints, and writes one JSON for each number of steps, and a figure of all.

    Costs are those of a step, and the first number of steps is enough for them.
    """
    if not argv or argv[0] not in WHAT:
        raise UsageError(f"which benchmark? give one of {', '.join(WHAT)}")
    if argv[0] in APART:
        return APART[argv[0]](argv[1:])
    register()
    options = pipeline_options("bench", argv[1:], add_arguments)
    model, call = _checked(argv[0], options)
    folder = Path(options["output"])
    if argv[0] == "batch":
        return _batch(folder, recipe_of(options), options)
    runner = Runner(engine.Engine(model, options, options["dtype"] or loading.default_dtype()), call)
    runner.engine.pipe.set_progress_bar_config(disable=True)
    batches = engine.batches(held_out_scenes(options["count"], options["seed"]), options["batch_size"], options["seed"])
    size: dict[str, Any] = {name: call[name] for name in ("height", "width") if name in call}
    settings = {"model": options["model"], **size, "count": options["count"], "seed": options["seed"], **versions()}
    kinds = {"approximations": _approximations, "significance": _significance, "tokens": _tokens, "costs": _costs}
    run = (kinds | {"overhead": _overhead})[argv[0]]
    for steps in options["steps"][:1] if argv[0] == "costs" else options["steps"]:
        results = run(runner.steps(steps), batches, options)
        if is_first_rank():
            _write(folder / f"{argv[0]}-{steps}.json", {**settings, "steps": steps, **results})
    if is_first_rank() and argv[0] == "approximations":
        files = sorted(folder.glob("approximations-*.json"))
        draw([Row(**row) for file in files for row in json.loads(file.read_text())["rows"]], folder / "frontier.png")
    world.finish()
    return 0


def _checked(name: str, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The model's folder and its call. Raises UsageError, before anything is loaded, for what cannot be measured."""
    model, call = model_folder(options["model"]), call_arguments(options)
    if options["model"] not in SHIPPED:
        raise UsageError(f"bench knows held-out prompts of shipped models only: {', '.join(SHIPPED)}")
    check_least(1, options, "steps", "count", "repeats")
    if name in CALIBRATED:
        calibration_path(options["model"])
    return model, call


def _write(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=1) + "\n")
    _say(f"fastcache: -> {path}")


def _approximations(runner: Runner, batches: Sequence[engine.Batch], options: dict[str, Any]) -> dict[str, Any]:
    paths, steps = tuned_configs(options["model"]), runner.call["num_inference_steps"]
    known = {budget: FastCacheConfig.from_file(path) for budget, path in paths.items()}
    tuned = {budget: config for budget, config in known.items() if steps in (config.schedule or {})}
    calibration = str(calibration_path(options["model"]))
    _say(f"{'steps':>5} {'budget':>7} {'FLOPs':>6}  {'stand-in':<22} {'PSNR dB':>8} {'worst':>6}")
    rows = approximations(Bench(runner, batches, calibration, options["maps"]), tuned, _show)
    cost = stand_in_cost(runner, batches[0], calibration)
    shares = f"{cost['of_one_block']:.1%} of one block's time, {cost['of_replaced_blocks']:.2%} of all that it replaces"
    _say(f"the fitted stand-in takes {shares}")
    return {"stand_in_cost": cost, "rows": [asdict(row) for row in rows]}


def _show(row: Row) -> None:
    line = f"{row.steps:>5} {f'1/{1 / row.budget:g}':>7} {row.compute_ratio:>6.1%}  {row.stand_in:<22}"
    _say(f"{line} {row.psnr_mean:>8.2f} {row.psnr_min:>6.1f}")


def _significance(runner: Runner, batches: Sequence[engine.Batch], options: dict[str, Any]) -> dict[str, Any]:
    path, tolerance, steps = (
        calibration_path(options["model"]),
        options["tolerance"],
        runner.call["num_inference_steps"],
    )
    _say(f"{'steps':>5} {'alpha':>6} {'skipped':>8}  over tolerance {tolerance:g}: {'promised':>9} {'measured':>9}")
    rows = []
    for alpha in ALPHAS:
        row = significance(runner, batches, Calibration.load(path), str(path), tolerance, alpha)
        rows.append(row)
        _say(f"{steps:>5} {alpha:>6g} {row['skipped']:>8.1%} {row['promised']:>31.1%} {row['measured']:>9.1%}")
    return {"rows": rows}


def _tokens(runner: Runner, batches: Sequence[engine.Batch], options: dict[str, Any]) -> dict[str, Any]:
    _say(f"{'setting':<8} {'kind':<24} {'FLOPs':>6} {'speedup':>8}  {'spread':<15} {'PSNR dB':>8} {'worst':>6}  mask")
    rows: list[TokensRow] = []
    maps: dict[str, tuple[Any, Sequence[TokenMap]]] = {}
    for setting in options["settings"]:
        bench = PartialBench(runner, batches, str(calibration_path(options["model"])), setting, options["repeats"])
        for row in bench.rows(options["budgets"]):
            _show_tokens(row)
            rows.append(row)
        if world.size() == 1:  # shards would have to be put together
            maps[setting] = bench.changes()
    if maps:
        folder = Path(options["output"])
        folder.mkdir(parents=True, exist_ok=True)
        sheet(maps, folder / f"token-changes-{runner.call['num_inference_steps']}.png")
    return {"rows": [asdict(row) for row in rows]}


def _show_tokens(row: TokensRow) -> None:
    line = f"{row.setting:<8} {row.kind:<24} {row.flops:>6.1%} {row.speedup:>7.2f}x"
    spread = f"{row.speedup_least:.2f}-{row.speedup_most:.2f} of {row.repeats}"
    _say(f"{line}  {spread:<15} {row.psnr_mean:>8.2f} {row.psnr_min:>6.1f}  {row.mask}")


def _costs(runner: Runner, batches: Sequence[engine.Batch], options: dict[str, Any]) -> dict[str, Any]:
    found = {share: round(cost, 3) for share, cost in costs(runner, batches[0]).items()}
    _say(f"tokens computed, and the time of the step over a whole one's; for the config:\ntokens:\n  costs: {found}")
    return {"costs": found}


def _overhead(runner: Runner, batches: Sequence[engine.Batch], options: dict[str, Any]) -> dict[str, Any]:
    paths = {path.stem: FastCacheConfig.from_file(path) for path in tuned_configs(options["model"]).values()}
    rows = {}
    for name, config in ({"defaults": FastCacheConfig()} | paths).items():
        rows[name] = overhead(runner, batches[0], config)
        parts = ", ".join(f"{part} {share:.2%}" for part, share in rows[name].items())
        _say(f"{name:<10} of the time in the transformer: {parts}")
    return {"layout": layout.degrees(options), "share_of_transformer_time": rows}


def _batch(folder: Path, recipe: Recipe, options: dict[str, Any]) -> int:
    """Replicas of one rank beside each other, and one process over many items; every run is one of `batch run`."""
    texts = held_out_scenes(max(MEMORY_ITEMS, options["count"]), options["seed"])
    rows = replicas(folder / "jobs", recipe, texts[: options["count"]], REPLICAS)
    for row in rows:
        work, whole = row.working_seconds / rows[0].working_seconds, row.seconds / rows[0].seconds
        seconds = f"{row.working_seconds:.1f} s at work ({work:.2f} of one's), {row.seconds:.1f} s in all ({whole:.2f})"
        _say(f"{row.replicas} replicas: {row.items} items, {seconds}")
    used = memory(folder / "jobs", recipe, texts[:MEMORY_ITEMS])
    _say(f"memory over {used.items} items: {used.early:.0f} MiB early, {used.late:.0f} MiB late")
    found = {"replicas": [row._asdict() for row in rows], "memory_mib": used._asdict()}
    _write(folder / "batch.json", {"model": options["model"], **versions(), **found})
    return 0


def _share(word: str) -> float:
    share = float(word)
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{word} is not a share of the FLOPs: give more than 0, and at most 1")
    return share


def _say(line: str) -> None:
    if is_first_rank():
        print(line, flush=True)
