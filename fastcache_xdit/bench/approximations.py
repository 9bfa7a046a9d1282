"""Benchmarks of what replaces a block and of the test that allows it, on prompts that no calibration has seen."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.approx.forms import FORM
from fastcache_xdit.bench.timed import Timed
from fastcache_xdit.config import SCHEDULE_DECIDES as SCHEDULED
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.decision.schedule import uniform_mask
from fastcache_xdit.decision.significance import Spread
from fastcache_xdit.evaluate.quality import psnr_db, to_tensor
from fastcache_xdit.host.xdit.engine import Batch
from fastcache_xdit.tuning.pairs import Pair, Pairs
from fastcache_xdit.tuning.runner import Runner
from fastcache_xdit.tuning.search import affordable, compute_ratio
from fastcache_xdit.undo import Undo

UNFITTED = ("reuse", "history", "taylor2")
FITTED = ("affine", "delta", "history", FORM)
RANKS = {"rank 16": 16, "whole": 1_000_000}
BUDGETS = (1 / 1.5, 1 / 2, 1 / 2.5, 1 / 3, 1 / 4, 1 / 5)


@dataclass(frozen=True)
class Row:
    """One config at one number of steps: PSNR in dB against uncached images, over all prompts."""

    steps: int
    budget: float
    compute_ratio: float
    mask: str
    stand_in: str
    psnr_mean: float
    psnr_min: float


class Bench:
    """Configs at one number of steps against uncached images, which are generated once."""

    def __init__(self, runner: Runner, batches: Sequence[Batch], calibration: str, maps: str | None = None) -> None:
        self.runner = runner
        self.batches = batches
        self.calibration = calibration
        self.maps = maps
        self.steps = runner.call["num_inference_steps"]
        self.num_blocks = len(runner.block_names)
        self.truth = [to_tensor(runner.images(batch, None)) for batch in batches]

    def uniform(self, budget: float) -> list[Row]:
        """Every stand-in on the uniform mask of a budget."""
        mask = uniform_mask(self.steps, affordable(budget, self.steps, 0, self.num_blocks))
        masked: dict[str, Any] = {**SCHEDULED, "schedule": {self.steps: mask}, "lead_blocks": 0}
        plain = {_label(name): FastCacheConfig(**masked, stand_in=name) for name in UNFITTED}
        fitted = {
            f"fitted {name}": FastCacheConfig(**masked, stand_in=name, calibration=self.calibration) for name in FITTED
        }
        if self.maps:
            affine = FastCacheConfig(**masked, stand_in="affine", calibration=self.maps, affine_rank=1)
            ranked = {
                f"affine, {name}": affine.model_copy(update={"affine_rank": rank}) for name, rank in RANKS.items()
            }
            fitted |= ranked
        return [self.row(name, budget, config) for name, config in (plain | fitted).items()]

    def row(self, name: str, budget: float, config: FastCacheConfig) -> Row:
        """One config with a schedule."""
        each: list[float] = []
        for batch, truth in zip(self.batches, self.truth, strict=True):
            each += psnr_db(to_tensor(self.runner.images(batch, config)), truth)
        mask = (config.schedule or {})[self.steps]
        ratio = compute_ratio(mask, config.lead_blocks, self.num_blocks)
        return Row(self.steps, budget, ratio, mask, name, sum(each) / len(each), min(each))


def approximations(bench: Bench, tuned: Mapping[float, FastCacheConfig], report: Callable[[Row], None]) -> list[Row]:
    """Rows of every budget: all stand-ins on the uniform mask, then the tuned config of that budget."""
    rows: list[Row] = []
    for budget in BUDGETS:
        found = bench.uniform(budget)
        if budget in tuned:
            found.append(bench.row("tuned", budget, tuned[budget]))
        for row in found:
            report(row)
        rows += found
    return rows


def significance(
    runner: Runner, batches: Sequence[Batch], calibration: Calibration, path: str, tolerance: float, alpha: float
) -> dict[str, float]:
    """The calibrated test on unseen prompts, every block computed beside its stand-in.

    Returns:
        `promised` and `measured`: share of skipped decisions whose error in the final latents exceeds the tolerance, by
        the calibrated spread and in truth (local error times calibrated gain); `skipped`: share of skipped decisions.
    """
    config = FastCacheConfig(
        test="calibrated", stand_in=FORM, calibration=path, alpha=alpha, tolerance=tolerance, error_budget=1e9
    )
    pairs: list[Pair] = []
    for batch in batches:
        seen = Pairs()
        with runner.enabled(config) as watched:
            watched.handle.driver.witness = seen
            watched.generate(batch)
            key = watched.handle.driver.segments[0].key
        pairs += [pair for pair in seen.collected() if pair.step >= config.warmup_steps]
    sigmas = runner.sigmas()
    gains, spread = calibration.gains_at(key, sigmas), Spread.from_dict(calibration.spread[key]).at(sigmas)
    skipped = [pair for pair in pairs if pair.was_skipped]
    expected = [spread.expected(pair.step, pair.change, pair.motion, pair.skipped) for pair in skipped]
    return {
        "alpha": alpha,
        "tolerance": tolerance,
        "promised": _mean([spread.exceeds(each, tolerance) for each in expected]),
        "measured": _mean([gains[pair.step] * pair.error > tolerance for pair in skipped]),
        "skipped": len(skipped) / len(pairs),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _label(name: str) -> str:
    return {"reuse": "reuse", "history": "taylor1", "taylor2": "taylor2"}[name]


def stand_in_cost(runner: Runner, batch: Batch, calibration: str) -> dict[str, float]:
    """Time of the fitted stand-in over the time of one block, and over that of all blocks which it replaces.

    Both are timed call by call in one run of alternating computed and skipped steps; medians.
    """
    steps = runner.call["num_inference_steps"]
    config = FastCacheConfig(
        **SCHEDULED,
        lead_blocks=0,
        stand_in=FORM,
        calibration=calibration,
        schedule={steps: uniform_mask(steps, steps // 2)},
    )
    with Undo() as undo:
        blocks = Timed(undo, [block.module for block in runner.blocks], "forward")
        with runner.enabled(config) as watched:
            watched.generate(batch)  # solves the fits, which a request does once
            stand_ins = Timed(undo, watched.handle.driver.stand_ins, "residual")
            blocks.seconds.clear()
            watched.generate(batch)
    cost, block = statistics.median(stand_ins.seconds), statistics.median(blocks.seconds)
    return {"of_one_block": cost / block, "of_replaced_blocks": cost / (block * len(runner.block_names))}
