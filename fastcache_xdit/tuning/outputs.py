"""Learns to skip whole calls of a model, as the default does while serving, where tuning has found how many to skip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.tuning.calls import Call, LoopCall
from fastcache_xdit.tuning.search import Search, Trial
from fastcache_xdit.tuning.targets import ReportLine

Skips = tuple[Search, Sequence[Call], Trial]


def better(blocks: Sequence[Skips], report: ReportLine) -> list[Trial]:
    """Return trials that skip whole calls, or those that skip blocks where they come out better on average.

    Args:
        blocks: for each number of steps the search, the calls to learn from, and its best trial; loops are not learnt.
        report: is told which are better.
    """
    trials = [trial for _, _, trial in blocks]
    if any(isinstance(call, LoopCall) for _, calls, _ in blocks for call in calls):
        return trials
    outputs = [found for each in blocks if (found := _learnt(*each))]
    if len(outputs) < len(trials):
        return trials
    before, now = (fmean(trial.psnr_db for trial in each) for each in (trials, outputs))
    report(f"blocks skipped: {before:.1f} dB; whole calls, learnt from {len(blocks[0][1])} others: {now:.1f} dB")
    return outputs if now > before else trials


def _learnt(search: Search, calls: Sequence[Call], blocks: Trial) -> Trial | None:
    """Learn to skip calls at no more compute than a trial takes; None where nothing is learnt from these calls."""
    computed = int(blocks.compute_ratio * search.steps + 1e-9)
    config = FastCacheConfig(budget=computed / search.steps, learn=len(calls))
    found = search.runner.learnt(calls, config) if calls and computed else None
    if found is None:
        return None
    mask = found.facts["masks"][str(computed)]
    config = FastCacheConfig.scheduled(mask, granularity="output", calibration=search.path)
    learnt = replace(found, facts=_facts(found))
    return Trial(search.psnr(config, learnt), computed / search.steps, mask, config, found.refits, learnt)


def _facts(learnt: Calibration) -> dict[str, object]:
    """Return what is still true where a schedule says what is skipped, at other numbers of steps too."""
    return {"calls": learnt.facts["requests"], "when": learnt.facts["when"]}
