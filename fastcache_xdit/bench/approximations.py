"""Compare what can replace a block, on prompts that no calibration has seen."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fastcache_xdit.approx.forms import FORM
from fastcache_xdit.bench.frontier import Curve
from fastcache_xdit.bench.timed import Shown, Timed
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.decision.schedule import uniform_mask
from fastcache_xdit.evaluate.quality import psnr_db, to_tensor
from fastcache_xdit.tuning.calls import PipelineCall
from fastcache_xdit.tuning.runner import Runner
from fastcache_xdit.tuning.search import affordable, compute_ratio
from fastcache_xdit.undo import Undo

UNFITTED = {"reuse": "reuse", "history": "taylor1", "taylor2": "taylor2"}  # names of stand-ins, and in tables
FITTED = ("affine", "delta", "history", FORM)
RANKS = {"rank 16": 16, "whole": 1_000_000}
BUDGETS = (1 / 1.5, 1 / 2, 1 / 2.5, 1 / 3, 1 / 4, 1 / 5)
# What the figure shows: stand-in, legend, colour, style.
SHOWN = (
    ("tuned", "preset", "#c8102e", "-"),
    ("fitted delta+history", "uniform mask, fitted delta+history", "#f08a5d", "-"),
    ("fitted history", "uniform mask, fitted history", "#e0bd62", "--"),
    ("taylor1", "uniform mask, Taylor 1", "#1f6fb4", "-"),
    ("taylor2", "uniform mask, Taylor 2", "#7fb8e6", "--"),
    ("reuse", "uniform mask, reuse", "#5d6878", "-"),
)


@dataclass(frozen=True)
class ApproximationRow:
    """One config at one number of steps.

    Attributes:
        steps: denoising steps of a request.
        budget: share of block FLOPs that it was made for.
        compute_ratio: share of block FLOPs that its mask computes.
        mask: 1 for each computed step, 0 for each skipped one.
        stand_in: its name in tables.
        psnr_mean, psnr_min: against uncached images, in dB, over all prompts.
    """

    steps: int
    budget: float
    compute_ratio: float
    mask: str
    stand_in: str
    psnr_mean: float
    psnr_min: float


class ApproximationBench:
    """Measure configs at one number of steps against uncached images, which are generated once.

    Args:
        runner: the model.
        calls: of held-out prompts.
        calibration: path of the calibration file.
        maps: path of one made with `calibrate --maps`, for the paper's affine map with whole matrices.
    """

    def __init__(
        self, runner: Runner, calls: Sequence[PipelineCall], calibration: str, maps: str | None = None
    ) -> None:
        self.runner = runner
        self.calls = calls
        self.calibration = calibration
        self.maps = maps
        self.steps = calls[0].steps
        self.num_blocks = len(runner.block_names)
        self.truth = [to_tensor(runner.images(call, None)) for call in calls]

    def uniform(self, budget: float) -> list[ApproximationRow]:
        """Measure every stand-in on the uniform mask of a budget."""
        mask = uniform_mask(self.steps, affordable(budget, self.steps, 0, self.num_blocks))
        masked = functools.partial(FastCacheConfig.scheduled, mask, lead_blocks=0)
        configs = {label: masked(stand_in=name) for name, label in UNFITTED.items()}
        for name in FITTED:
            configs[f"fitted {name}"] = masked(stand_in=name, calibration=self.calibration)
        for label, rank in RANKS.items() if self.maps else ():
            configs[f"affine, {label}"] = masked(stand_in="affine", calibration=self.maps, affine_rank=rank)
        return [self.row(label, budget, config) for label, config in configs.items()]

    def row(self, name: str, budget: float, config: FastCacheConfig) -> ApproximationRow:
        """Measure one config with a schedule."""
        psnr: list[float] = []
        for call, truth in zip(self.calls, self.truth, strict=True):
            psnr += psnr_db(to_tensor(self.runner.images(call, config)), truth)
        mask = (config.schedule or {})[self.steps]
        ratio = compute_ratio(mask, config.lead_blocks, self.num_blocks)
        return ApproximationRow(self.steps, budget, ratio, mask, name, sum(psnr) / len(psnr), min(psnr))


def approximations(
    bench: ApproximationBench, tuned: Mapping[float, FastCacheConfig], report: Callable[[ApproximationRow], None]
) -> list[ApproximationRow]:
    """Measure every budget: all stand-ins on the uniform mask, then the tuned config of that budget.

    Each row is given to `report` once its budget is measured.
    """
    rows: list[ApproximationRow] = []
    for budget in BUDGETS:
        at_budget = bench.uniform(budget)
        if budget in tuned:
            at_budget.append(bench.row("tuned", budget, tuned[budget]))
        for row in at_budget:
            report(row)
        rows += at_budget
    return rows


def panels(rows: Sequence[ApproximationRow]) -> dict[str, list[Curve]]:
    """Return the figure's panels, one for each number of steps."""
    every = sorted({row.steps for row in rows})
    return {f"{steps} steps": _curves([row for row in rows if row.steps == steps]) for steps in every}


def _curves(rows: Sequence[ApproximationRow]) -> list[Curve]:
    curves = []
    for name, label, colour, style in SHOWN:
        places = [(1 / row.compute_ratio, row.psnr_mean) for row in rows if row.stand_in == name]
        if places:
            curves.append(Curve(label, places, colour, style, bold=name == "tuned"))
    return curves


def stand_in_cost(runner: Runner, call: PipelineCall, calibration: str) -> dict[str, float]:
    """Measure the fitted stand-in's time over that of one block, and over that of all blocks that it replaces.

    Both are medians over the calls of one request of alternating computed and skipped steps.
    """
    steps = call.steps
    mask, shown = uniform_mask(steps, steps // 2), Shown()
    config = FastCacheConfig.scheduled(mask, lead_blocks=0, stand_in=FORM, calibration=calibration)
    with Undo() as undo:
        blocks = Timed(undo, [block.module for block in runner.blocks], "__call__")
        with runner.enabled(config, observer=shown) as generate:
            generate(call)  # solves the fits, which a request does once
            stand_ins = Timed(undo, shown.watched.stand_ins, "residual")
            blocks.seconds.clear()
            generate(call)
    cost, block = statistics.median(stand_ins.seconds), statistics.median(blocks.seconds)
    return {"of_one_block": cost / block, "of_replaced_blocks": cost / (block * len(runner.block_names))}
