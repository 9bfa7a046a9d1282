"""Finds the mask of a config: planned by the dynamic programme, refined by a small seeded search on true images."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.approx.forms import FORM
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.decision.schedule import uniform_mask
from fastcache_xdit.errors import UsageError
from fastcache_xdit.evaluate.quality import psnr_db, to_tensor
from fastcache_xdit.host.xdit.engine import Batch
from fastcache_xdit.tuning.planner import LONGEST_GAP, ErrorTable, plan
from fastcache_xdit.tuning.polish import Polisher
from fastcache_xdit.tuning.refit import Refits, Refitter
from fastcache_xdit.tuning.runner import Runner

COHERENCES = (0.0, 0.5, 1.0)


class Trial(NamedTuple):
    """One config on the search prompts: how good, and at what cost."""

    psnr_db: float
    compute_ratio: float
    mask: str
    config: FastCacheConfig
    refits: Refits = {}  # noqa: RUF012 (never changed)


def compute_ratio(mask: str, lead_blocks: int, num_blocks: int, partial: float = 0.0) -> float:
    """Block calls executed / all, for a mask with so many lead blocks; a step marked p counts as `partial`."""
    computed = mask.count("1") + partial * mask.count("p")
    return (computed * num_blocks + (len(mask) - computed) * lead_blocks) / (len(mask) * num_blocks)


def affordable(budget: float, steps: int, lead_blocks: int, num_blocks: int) -> int:
    """The most computed steps whose compute ratio stays within `budget`.

    Raises:
        UsageError: not even one step fits.
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
    """Searches at one number of steps, on prompts whose uncached images are generated once.

    Args:
        runner: the model; its call has the number of steps.
        batches: search prompts, which calibration may share and evaluation must not.
        calibration: of the model.
        path: where it lies, for the configs that are found.
        lead_blocks: always computed; a schedule needs none, since it looks at no change.
        seed: of the order in which moves are tried.
        start: a config whose mask for this number of steps is tried too, where it is within the budget.
        refitter: fits the best mask's stand-ins anew.
        polisher: trains them after that.
    """

    runner: Runner
    batches: Sequence[Batch]
    calibration: Calibration
    path: str
    lead_blocks: int = 0
    seed: int = 0
    start: FastCacheConfig | None = None
    refitter: Refitter | None = None
    polisher: Polisher | None = None
    tried: dict[str, Trial] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.num_blocks = len(self.runner.block_names)
        self.truth = [to_tensor(self.runner.images(batch, None)) for batch in self.batches]
        self.sigmas = self.runner.sigmas()
        self.steps = len(self.sigmas)
        self._planner: tuple[ErrorTable, list[float]] | None = None

    def best(self, budget: float, evaluations: int, report: Callable[[str], None]) -> Trial:
        """The best config found within `budget` of the block calls, by at most so many evaluations."""
        trials = [self.evaluate(mask) for mask in self._planned(budget)]
        best = max(trials, key=lambda trial: trial.psnr_db)
        report(f"planned {len(trials)} masks for {budget:.0%}: {best.psnr_db:.1f} dB")
        best = self._climb(best, evaluations - len(trials), report)
        if not self.refitter or not evaluations:
            return best
        best = self._refitted(best, self.refitter, report)
        return self._polished(best, self.polisher, report) if self.polisher else best

    def evaluate(self, mask: str) -> Trial:
        """Mean PSNR of a mask on the search prompts; each is tried once."""
        if mask not in self.tried:
            config = FastCacheConfig.scheduled(mask, calibration=self.path, stand_in=FORM, lead_blocks=self.lead_blocks)
            ratio = compute_ratio(mask, self.lead_blocks, self.num_blocks)
            self.tried[mask] = Trial(self._psnr(config), ratio, mask, config)
        return self.tried[mask]

    def _polished(self, best: Trial, polisher: Polisher, report: Callable[[str], None]) -> Trial:
        """Trained further; kept where that helps the search prompts as well as those that judged it."""
        refits = polisher.polish(best.config, replace(self.calibration, refits=best.refits), report)
        trial = best._replace(psnr_db=self._psnr(best.config, refits), refits=refits)
        report(f"polished: {best.psnr_db:.1f} -> {trial.psnr_db:.1f} dB")
        return max(best, trial, key=lambda each: each.psnr_db)

    def _refitted(self, best: Trial, refitter: Refitter, report: Callable[[str], None]) -> Trial:
        """Fitted anew where that helps: most for few computed steps, which lead far from the uncached trajectory."""
        refits = refitter.refit(best.config)
        trial = best._replace(psnr_db=self._psnr(best.config, refits), refits=refits)
        report(f"refitted: {best.psnr_db:.1f} -> {trial.psnr_db:.1f} dB")
        return max(best, trial, key=lambda each: each.psnr_db)

    def _psnr(self, config: FastCacheConfig, refits: Refits | None = None) -> float:
        calibration = replace(self.calibration, refits=refits) if refits else self.calibration
        psnrs: list[float] = []
        for batch, truth in zip(self.batches, self.truth, strict=True):
            psnrs += psnr_db(to_tensor(self.runner.images(batch, config, calibration)), truth)
        return sum(psnrs) / len(psnrs)

    def _planned(self, budget: float) -> list[str]:
        """The given mask, those of the dynamic programme by measured and by equal weights of the steps, an even one."""
        computed = affordable(budget, self.steps, self.lead_blocks, self.num_blocks)
        table, gains = self._table()
        plans = [plan(table, weights, computed, c) for weights in (gains, [1.0] * self.steps) for c in COHERENCES]
        given = (self.start.schedule or {}).get(self.steps, "") if self.start else ""
        masks = [given] if given.count("1") == computed and "p" not in given else []
        return list(dict.fromkeys([*masks, *(each.mask for each in plans), uniform_mask(self.steps, computed)]))

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
        """Move one computed step by one place at a time, for as long as that helps."""
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
        """Untried masks with one computed step moved by one place; the first step stays computed."""
        mask = trial.mask
        swaps = [step for step in range(1, self.steps - 1) if mask[step] != mask[step + 1]]
        moved = [mask[:step] + mask[step + 1] + mask[step] + mask[step + 2 :] for step in swaps]
        return [each for each in moved if each not in self.tried]
