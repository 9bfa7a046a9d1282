"""Searches for the mask of a config: planned from the calibration, then refined by a seeded search on images."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.approx.forms import FORM
from fastcache_xdit.approx.identity import check_identity
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.decision.schedule import uniform_mask
from fastcache_xdit.errors import UsageError
from fastcache_xdit.host.identity import identity
from fastcache_xdit.tuning.calls import Call
from fastcache_xdit.tuning.planner import LONGEST_GAP, ErrorTable, plan
from fastcache_xdit.tuning.polish import Polisher
from fastcache_xdit.tuning.refit import Refits, Refitter
from fastcache_xdit.tuning.runner import Runner

COHERENCES = (0.0, 0.5, 1.0)


class Trial(NamedTuple):
    """The quality and cost of one config on the searched calls.

    Attributes:
        psnr_db: mean PSNR of its images against uncached ones.
        compute_ratio: fraction of block calls executed.
        mask: its mask.
        config: the config.
        refits: coefficients that belong to it.
        learnt: what they belong to, if that is not the calibration that was searched with.
    """

    psnr_db: float
    compute_ratio: float
    mask: str
    config: FastCacheConfig
    refits: Refits = {}  # noqa: RUF012 (never changed)
    learnt: Calibration | None = None


def compute_ratio(mask: str, lead_blocks: int, num_blocks: int, partial: float = 0.0) -> float:
    """Return the fraction of block calls that a mask executes; a step marked p counts as the fraction `partial`."""
    computed = mask.count("1") + partial * mask.count("p")
    return (computed * num_blocks + (len(mask) - computed) * lead_blocks) / (len(mask) * num_blocks)


def affordable(budget: float, steps: int, lead_blocks: int, num_blocks: int) -> int:
    """Return the largest number of computed steps whose compute ratio is within `budget`.

    Raises:
        UsageError: the budget is too small for one step.
    """
    lead = lead_blocks / num_blocks
    computed = int((budget - lead) / (1 - lead) * steps + 1e-9)
    if computed < 1:
        raise UsageError(
            f"a budget of {budget:.0%} leaves none of {steps} steps", f"set at least {(1 + lead) / steps:.0%}"
        )
    return min(computed, steps)


@dataclass
class Search:
    """Searches masks for one number of steps, on calls whose uncached images are generated once.

    Args:
        runner: the model.
        calls: all of one number of steps; they may be those of the calibration but not of the evaluation.
        calibration: the calibration of the model.
        path: its path, for the resulting configs; None if it has none.
        lead_blocks: number of lead blocks; a schedule needs none, since it measures no change.
        seed: of the order in which moves are tried.
        start: a config whose mask is tried too, if it is within the budget.
        refitter: refits the stand-ins of the best mask.
        polisher: trains them afterwards.
    """

    runner: Runner
    calls: Sequence[Call]
    calibration: Calibration
    path: str | None = None
    lead_blocks: int = 0
    seed: int = 0
    start: FastCacheConfig | None = None
    refitter: Refitter | None = None
    polisher: Polisher | None = None
    tried: dict[str, Trial] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_identity(self.calibration.identity, identity(self.runner.host))
        self.num_blocks = len(self.runner.block_names)
        self.references = [self.runner.images(call, None) for call in self.calls]
        self.sigmas = self.runner.sigmas()
        self.steps = len(self.sigmas)
        self._planner: tuple[ErrorTable, list[float]] | None = None

    def best(self, budget: float, evaluations: int, report: Callable[[str], None]) -> Trial:
        """Return the best config with at most the fraction `budget` of the block calls, by so many evaluations.

        Raises:
            UsageError: the budget is too small, or the calibration lacks the segment.
        """
        trials = [self.evaluate(mask) for mask in self._planned(budget)]
        best = max(trials, key=lambda trial: trial.psnr_db)
        report(f"planned {len(trials)} masks for {budget:.0%}: {best.psnr_db:.1f} dB")
        best = self._climb(best, evaluations - len(trials), report)
        if not self.refitter or not evaluations:
            return best
        best = self._refitted(best, self.refitter, report)
        return self._polished(best, self.polisher, report) if self.polisher else best

    def evaluate(self, mask: str) -> Trial:
        """Return the trial of a mask on the search prompts; a mask is evaluated once."""
        if mask not in self.tried:
            config = FastCacheConfig.scheduled(mask, calibration=self.path, stand_in=FORM, lead_blocks=self.lead_blocks)
            ratio = compute_ratio(mask, self.lead_blocks, self.num_blocks)
            self.tried[mask] = Trial(self.psnr(config, self.calibration), ratio, mask, config)
        return self.tried[mask]

    def _polished(self, best: Trial, polisher: Polisher, report: Callable[[str], None]) -> Trial:
        """Train the stand-ins of the best trial; return it, or the old one if it is better on the search prompts."""
        refits = polisher.polish(best.config, replace(self.calibration, refits=best.refits), report)
        trial = self._with(best, refits)
        report(f"polished: {best.psnr_db:.1f} -> {trial.psnr_db:.1f} dB")
        return max(best, trial, key=lambda option: option.psnr_db)

    def _refitted(self, best: Trial, refitter: Refitter, report: Callable[[str], None]) -> Trial:
        """Refit the stand-ins of the best trial; return it, or the old one if it is better.

        This helps most with few computed steps, which lead far from the uncached trajectory.
        """
        refits = refitter.refit(best.config)
        trial = self._with(best, refits)
        report(f"refitted: {best.psnr_db:.1f} -> {trial.psnr_db:.1f} dB")
        return max(best, trial, key=lambda option: option.psnr_db)

    def _with(self, trial: Trial, refits: Refits) -> Trial:
        """Return a trial with other coefficients."""
        psnr = self.psnr(trial.config, replace(self.calibration, refits=refits))
        return trial._replace(psnr_db=psnr, refits=refits)

    def psnr(self, config: FastCacheConfig, calibration: Calibration) -> float:
        """Return the mean PSNR in dB of the search's calls against uncached ones."""
        psnrs: list[float] = []
        for call, reference in zip(self.calls, self.references, strict=True):
            psnrs += call.psnr(self.runner.images(call, config, calibration), reference)
        return sum(psnrs) / len(psnrs)

    def _planned(self, budget: float) -> list[str]:
        """Return the mask of `start`, planned masks with measured and with equal gains, and an evenly spaced one."""
        computed = affordable(budget, self.steps, self.lead_blocks, self.num_blocks)
        table, gains = self._table()
        plans = [plan(table, weights, computed, c) for weights in (gains, [1.0] * self.steps) for c in COHERENCES]
        given = (self.start.schedule or {}).get(self.steps, "") if self.start else ""
        masks = [given] if given.count("1") == computed and "p" not in given else []
        return list(dict.fromkeys([*masks, *(planned.mask for planned in plans), uniform_mask(self.steps, computed)]))

    def _table(self) -> tuple[ErrorTable, list[float]]:
        if self._planner is None:
            names = self.runner.block_names
            key = f"{names[self.lead_blocks]}..{names[-1]}"
            if key not in self.calibration.moments:
                raise UsageError(
                    f"the calibration has no segment {key}", f"calibrate with --lead_blocks {self.lead_blocks}"
                )
            halves = self.calibration.moments[key]["hidden_states"].at(self.sigmas)
            table = ErrorTable(FORM, halves, max(LONGEST_GAP, self.steps // 4))
            self._planner = table, self.calibration.gains_at(key, self.sigmas)
        return self._planner

    def _climb(self, best: Trial, evaluations: int, report: Callable[[str], None]) -> Trial:
        """Move one computed step by one place at a time, while that improves the mask."""
        generator, moves = random.Random(self.seed), self._moves(best)
        generator.shuffle(moves)
        while moves and evaluations > 0:
            trial = self.evaluate(moves.pop())
            evaluations -= 1
            if trial.psnr_db > best.psnr_db:
                best, moves = trial, self._moves(trial)
                generator.shuffle(moves)
                report(f"moved one step: {best.psnr_db:.1f} dB")
        return best

    def _moves(self, trial: Trial) -> list[str]:
        """Return the untried masks with one computed step moved by one place; the first step stays computed."""
        mask = trial.mask
        swaps = [step for step in range(1, self.steps - 1) if mask[step] != mask[step + 1]]
        moved = [mask[:step] + mask[step + 1] + mask[step] + mask[step + 2 :] for step in swaps]
        return [candidate for candidate in moved if candidate not in self.tried]
