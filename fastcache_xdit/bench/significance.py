"""Measure what the significance test promises, and what comes out, on prompts that no calibration has seen."""

from __future__ import annotations

from collections.abc import Sequence

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.approx.forms import FORM
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.decision.significance import Spread
from fastcache_xdit.segments.segment import Segment
from fastcache_xdit.tuning.calls import PipelineCall
from fastcache_xdit.tuning.pairs import Pair, Pairs
from fastcache_xdit.tuning.runner import Runner

ALPHAS = (0.01, 0.05, 0.2)


def significance(
    runner: Runner, calls: Sequence[PipelineCall], calibration: str, tolerance: float, alpha: float
) -> dict[str, float]:
    """Run the calibrated test with every block computed beside its stand-in.

    Args:
        runner: the model.
        calls: of prompts that the calibration has not seen.
        calibration: path of the calibration file.
        tolerance: relative error in the final latents that a skip may cause.
        alpha: share of steps at the tolerance that are computed all the same.

    Returns:
        `promised` and `measured`: share of skipped decisions whose error in the final latents exceeds the tolerance, by
        the calibrated spread and in truth (local error times calibrated gain); `skipped`: share of skipped decisions.
    """
    config = FastCacheConfig(
        test="calibrated", stand_in=FORM, calibration=calibration, alpha=alpha, tolerance=tolerance, error_budget=1e9
    )
    pairs, key = _observed(runner, calls, config), Segment(0, tuple(runner.blocks[config.lead_blocks :])).key
    sigmas, loaded = runner.sigmas(), Calibration.load(calibration)
    gains, spread = loaded.gains_at(key, sigmas), Spread.from_dict(loaded.spread[key]).at(sigmas)
    skipped = [pair for pair in pairs if pair.was_skipped]
    expected = [spread.expected(pair.step, pair.change, pair.motion, pair.skipped) for pair in skipped]
    return {
        "alpha": alpha,
        "tolerance": tolerance,
        "promised": _mean([spread.exceeds(error, tolerance) for error in expected]),
        "measured": _mean([gains[pair.step] * pair.error > tolerance for pair in skipped]),
        "skipped": len(skipped) / len(pairs),
    }


def _observed(runner: Runner, calls: Sequence[PipelineCall], config: FastCacheConfig) -> list[Pair]:
    """Return all decisions after warm-up."""
    pairs: list[Pair] = []
    for call in calls:
        observer = Pairs()
        with runner.enabled(config, observer=observer) as generate:
            generate(call)
        pairs += [pair for pair in observer.collected() if pair.step >= config.warmup_steps]
    return pairs


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
