"""Targets of tuning (a budget, a speedup, a quality), and the search for them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.errors import UsageError
from fastcache_xdit.tuning.search import Search, Trial

KINDS = {"budget": (0.0, 1.0), "speedup": (1.0, 100.0), "psnr": (0.0, 100.0)}  # allowed range, ends excluded
MOST_BY_HALF = 2.2  # with half the blocks nothing is more than twice as fast, but for what timings scatter
ReportLine = Callable[[str], None]


class Target(NamedTuple):
    """A target such as `budget=0.4` (fraction of block FLOPs), `speedup=2.5` (of wall time) or `psnr=34` (mean, dB)."""

    kind: str
    value: float

    @classmethod
    def parse(cls, text: str) -> Target:
        """Parse KIND=NUMBER.

        Raises:
            UsageError: the kind is unknown, or the number is out of range.
        """
        kind, _, number = text.partition("=")
        if kind not in KINDS:
            raise UsageError(
                f"target {text!r} is not known", f"give one of {', '.join(f'{name}=NUMBER' for name in KINDS)}"
            )
        low, high = KINDS[kind]
        try:
            value = float(number)
        except ValueError:
            value = low
        if not low < value < high:
            raise UsageError(f"target {text!r}: {kind} must be a number above {low:g} and below {high:g}")
        return cls(kind, value)


def find(search: Search, target: Target, evaluations: int, report: ReportLine) -> Trial:
    """Return the best config for a target at the search's number of steps.

    Raises:
        UsageError: no config reaches the target; says what is possible.
    """
    if target.kind == "budget":
        return search.best(target.value, evaluations, report)
    if target.kind == "psnr":
        return _cheapest(search, target.value, evaluations, report)
    return search.best(_budget_for(search, target.value, report), evaluations, report)


def _cheapest(search: Search, psnr: float, evaluations: int, report: ReportLine) -> Trial:
    """Return the config with the fewest computed steps that reaches `psnr`: bisect, search, then try one step less."""
    low, high = 1, search.steps
    while high - low > 1:
        middle = (low + high) // 2
        reached = search.best(middle / search.steps, 0, report).psnr_db >= psnr
        low, high = (low, middle) if reached else (middle, high)
    if high == search.steps:
        raise UsageError(f"{psnr:g} dB is not reached with any step skipped", "take a lower target")
    best = search.best(high / search.steps, evaluations, report)
    refined = search.best(low / search.steps, evaluations, report) if low > 1 else best
    return refined if refined.psnr_db >= psnr else best


def _budget_for(search: Search, speedup: float, report: ReportLine) -> float:
    full, half = _seconds(search, None), _seconds(search, search.best(0.5, 0, report).config)
    budget = budget_of(full, half, speedup, search.steps)
    report(f"{full:.2f} s uncached, {half:.2f} s with half the blocks: {speedup:g}x needs {budget:.0%} of them")
    return budget


def budget_of(full: float, half: float, speedup: float, steps: int) -> float:
    """Return the share of the blocks that gives a speedup, from two wall times: seconds = fixed + share * slope.

    Args:
        full, half: seconds of a request with all blocks, and with half of them.
        speedup: what is wanted.
        steps: of the request.
    Raises:
        UsageError: the timings cannot be, or the speedup is out of reach.
    """
    if not 1 < full / half <= MOST_BY_HALF:
        raise UsageError(
            f"half the blocks took {half:.2f} s and all of them {full:.2f} s, which cannot be: something else slowed "
            "one of them down",
            "tune again where nothing else runs, or take --target budget=NUMBER, which needs no timing",
        )
    fixed = 2 * half - full
    budget = (full / speedup - fixed) / (full - fixed)
    if budget <= 2 / steps:
        raise UsageError(
            f"{speedup:g}x is out of reach at {steps} steps: what is not blocks takes {max(fixed / full, 0):.0%} of "
            f"the time, so that {full / (fixed + (full - fixed) * 3 / steps):.1f}x is the most"
        )
    return budget


def _seconds(search: Search, config: FastCacheConfig | None) -> float:
    """Return the least of three wall times of one call, in seconds."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        search.runner.images(search.calls[0], config, search.calibration if config else None)
        times.append(time.perf_counter() - start)
    return min(times)
