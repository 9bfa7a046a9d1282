"""The benchmarks of FastCache alone: each prints its rows as they come, and returns what its JSON holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastcache_xdit.bench.approximations import ApproximationBench, ApproximationRow, approximations, stand_in_cost
from fastcache_xdit.bench.batch import memory, replicas
from fastcache_xdit.bench.costs import costs
from fastcache_xdit.bench.overhead import overhead, overhead_of_outputs, overhead_of_plan
from fastcache_xdit.bench.profile import COLUMNS, deep_flux, profile
from fastcache_xdit.bench.significance import ALPHAS, significance
from fastcache_xdit.bench.tokens import PartialBench, TokensRow
from fastcache_xdit.cli.options.bench import BenchOptions
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.evaluate.token_maps import TokenMap, sheet
from fastcache_xdit.host.xdit import world
from fastcache_xdit.jobs.recipe import Recipe
from fastcache_xdit.shipped import calibration_path, tuned_configs
from fastcache_xdit.tuning.calls import PipelineCall
from fastcache_xdit.tuning.runner import Runner

REPLICAS, MEMORY_ITEMS = (1, 2), 200  # of bench batch


def run_approximations(runner: Runner, calls: Sequence[PipelineCall], options: BenchOptions) -> dict[str, Any]:
    """Compare what can replace a block at one number of steps."""
    configs = {budget: FastCacheConfig.from_file(path) for budget, path in _presets(options).items()}
    steps = calls[0].steps
    tuned = {budget: config for budget, config in configs.items() if steps in (config.schedule or {})}
    calibration = _calibration(options)
    say(f"{'steps':>5} {'budget':>7} {'FLOPs':>6}  {'stand-in':<22} {'PSNR dB':>8} {'worst':>6}")
    rows = approximations(ApproximationBench(runner, calls, calibration, options.maps), tuned, _say_approximation)
    cost = stand_in_cost(runner, calls[0], calibration)
    shares = f"{cost['of_one_block']:.1%} of one block's time, {cost['of_replaced_blocks']:.2%} of all that it replaces"
    say(f"the fitted stand-in takes {shares}")
    return {"stand_in_cost": cost, "rows": [asdict(row) for row in rows]}


def _say_approximation(row: ApproximationRow) -> None:
    line = f"{row.steps:>5} {f'1/{1 / row.budget:g}':>7} {row.compute_ratio:>6.1%}  {row.stand_in:<22}"
    say(f"{line} {row.psnr_mean:>8.2f} {row.psnr_min:>6.1f}")


def run_significance(runner: Runner, calls: Sequence[PipelineCall], options: BenchOptions) -> dict[str, Any]:
    """Compare what the calibrated test promises with what comes out, at one number of steps."""
    tolerance, steps = options.tolerance, calls[0].steps
    say(f"{'steps':>5} {'alpha':>6} {'skipped':>8}  over tolerance {tolerance:g}: {'promised':>9} {'measured':>9}")
    rows = []
    for alpha in ALPHAS:
        row = significance(runner, calls, _calibration(options), tolerance, alpha)
        rows.append(row)
        say(f"{steps:>5} {alpha:>6g} {row['skipped']:>8.1%} {row['promised']:>31.1%} {row['measured']:>9.1%}")
    return {"rows": rows}


def run_tokens(runner: Runner, calls: Sequence[PipelineCall], options: BenchOptions) -> dict[str, Any]:
    """Compare partial steps with skipping alone, and draw how far tokens move, at one number of steps."""
    say(f"{'setting':<8} {'kind':<24} {'FLOPs':>6} {'speedup':>8}  {'spread':<15} {'PSNR dB':>8} {'worst':>6}  mask")
    rows: list[TokensRow] = []
    maps: dict[str, tuple[Any, Sequence[TokenMap]]] = {}
    for setting in options.settings:
        bench = PartialBench(runner, calls, _calibration(options), setting, options.repeats)
        for row in bench.rows(options.budgets):
            _say_tokens(row)
            rows.append(row)
        if world.size() == 1:  # shards would have to be put together
            maps[setting] = bench.changes()
    if maps:
        folder = Path(options.output)
        folder.mkdir(parents=True, exist_ok=True)
        sheet(maps, folder / f"token-changes-{calls[0].steps}.png")
    return {"rows": [asdict(row) for row in rows]}


def _say_tokens(row: TokensRow) -> None:
    line = f"{row.setting:<8} {row.kind:<24} {row.flops:>6.1%} {row.speedup:>7.2f}x"
    spread = f"{row.speedup_least:.2f}-{row.speedup_most:.2f} of {row.repeats}"
    say(f"{line}  {spread:<15} {row.psnr_mean:>8.2f} {row.psnr_min:>6.1f}  {row.mask}")


def run_costs(runner: Runner, calls: Sequence[PipelineCall], options: BenchOptions) -> dict[str, Any]:
    """Measure what partial steps cost on this machine."""
    measured = {share: round(cost, 3) for share, cost in costs(runner, calls[0]).items()}
    say(f"tokens computed, and the time of the step over a whole one's; for the config:\ntokens:\n  costs: {measured}")
    return {"costs": measured}


def run_overhead(runner: Runner, calls: Sequence[PipelineCall], options: BenchOptions) -> dict[str, Any]:
    """Measure what the cache itself takes of a request's time, with the default plan and with each preset.

    With `--profile`, where the time of each kind of step goes, in one process for FLUX.1's depth as well.
    """
    if options.profile:
        given = {options.model or "": (runner, calls[0])}
        given |= {"flux.1 depth": deep_flux(calls[0].steps)} if world.size() == 1 else {}
        return {
            "layout": options.layout.degrees,
            "profile_ms": {name: _profiled(name, *of) for name, of in given.items()},
        }
    configs = {path.stem: FastCacheConfig.from_file(path) for path in _presets(options).values()}
    rows = {}
    for name, config in ({"plan": None} | configs).items():
        rows[name] = _overhead(runner, calls[0], config)
        parts = ", ".join(f"{part} {share:.2%}" for part, share in rows[name].items())
        say(f"{name:<10} of the time in the transformer: {parts}")
    return {"layout": options.layout.degrees, "share_of_transformer_time": rows}


def _overhead(runner: Runner, call: PipelineCall, config: FastCacheConfig | None) -> dict[str, float]:
    if config is None:
        return overhead_of_plan(runner, call)
    measure = overhead_of_outputs if config.granularity == "output" else overhead
    return measure(runner, call, config)


def _profiled(name: str, runner: Runner, call: PipelineCall) -> dict[str, dict[str, float]]:
    say(f"{name:<16} {'ms':>14} " + " ".join(f"{column:>9}" for column in COLUMNS))
    rows = profile(runner, call)
    for kind, row in rows.items():
        say(f"{kind:>31} " + " ".join(f"{row[column]:>9.2f}" if column in row else " " * 9 for column in COLUMNS))
    return rows


def run_batch(recipe: Recipe, prompts: Sequence[str], count: int, folder: Path) -> dict[str, Any]:
    """Run `count` prompts with one replica and with two, and `MEMORY_ITEMS` in one process, as jobs in `folder`."""
    rows = replicas(folder, recipe, prompts[:count], REPLICAS)
    for row in rows:
        work, total = row.working_seconds / rows[0].working_seconds, row.seconds / rows[0].seconds
        seconds = f"{row.working_seconds:.1f} s at work ({work:.2f} of one's), {row.seconds:.1f} s in all ({total:.2f})"
        say(f"{row.replicas} replicas: {row.items} items, {seconds}")
    used = memory(folder, recipe, prompts[:MEMORY_ITEMS])
    say(f"memory over {used.items} items: {used.early:.0f} MiB early, {used.late:.0f} MiB late")
    return {"replicas": [row._asdict() for row in rows], "memory_mib": used._asdict()}


def say(line: str) -> None:
    """Print a line at once, on the first rank alone."""
    if world.is_first_rank():
        print(line, flush=True)


def _calibration(options: BenchOptions) -> str:
    return str(calibration_path(options.model or ""))


def _presets(options: BenchOptions) -> dict[float, Path]:
    return tuned_configs(options.model or "")
