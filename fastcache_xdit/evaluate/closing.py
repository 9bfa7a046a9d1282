"""The line with which a job closes, from its figures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

MOST_NAMED = 10  # images in the line


def pace(speedup: float) -> str:
    """Put a ratio of times into words."""
    return f"{speedup:.2f}x faster" if speedup >= 1 else f"{1 / speedup:.2f}x slower"


def noun(figures: dict[str, Any], count: int) -> str:
    """Name what a job makes, so many of them."""
    return ("clip" if "clips" in figures else "image") + "s" * (count != 1)


def line(figures: dict[str, Any], report: Any) -> str:
    """Sum up a job in one line."""
    return f"fastcache: {', '.join(_parts(figures))} -> {report}"


def _parts(figures: dict[str, Any]) -> Iterator[str]:
    yield f"{figures['num_images']} {noun(figures, figures['num_images'])}"
    if broken := figures.get("not_finite", {}):
        numbers = sorted({index for kind in broken.values() for index in kind})
        which = ", ".join(map(str, numbers[:MOST_NAMED])) + ", ..." * (len(numbers) > MOST_NAMED)
        yield f"{len(numbers)} NOT FINITE and not kept ({which}): lower guidance, or use another dtype"
    learning, after = figures.get("learning"), figures.get("after_switch")
    if learning and after:
        yield f"learnt from the first {learning['requests']} requests in {learning['seconds']:.1f} s"
        yield f"since then {', '.join(_results(after, figures.get('promised_db')))}"
        yield f"all in all {', '.join(_times(figures))}"
    else:
        yield from _whole(figures)
    if figures.get("agreeing_ranks", 1) > 1:  # one rank, or a stage that decides for itself, agrees with nobody
        yield "ranks agree" if figures["ledgers_agree"] else "RANKS DISAGREE"
    if "prompt_accuracy" in figures:
        accuracy = figures["prompt_accuracy"]
        yield f"prompt accuracy {accuracy['cached']:.0%} (uncached {accuracy['uncached']:.0%})"


def _whole(figures: dict[str, Any]) -> Iterator[str]:
    """Sum up a job in which nothing was learnt; two times of the same work say nothing about the cache."""
    learning = figures.get("learning")
    if learning and figures["compute_ratio"] == 1:
        yield f"{figures.get('seconds', figures.get('cached_seconds')):.1f} s"
        yield "all computed in full, to learn from: with --cache_config '{\"learn\": 0}' steps are skipped at once"
        return
    if learning:
        yield f"the first {learning['requests']} requests recorded to learn from"
    yield from _times(figures)
    yield from _quality(figures)
    yield from _compute(figures)


def _results(figures: dict[str, Any], promise: float | None) -> Iterator[str]:
    yield from _times(figures)
    yield from _quality(figures, "" if promise is None else f" (promised {promise:.1f})")
    yield from _compute(figures)


def _times(figures: dict[str, Any]) -> Iterator[str]:
    if "speedup" in figures:
        yield f"{pace(figures['speedup'])} ({figures['baseline_seconds']:.1f} s -> {figures['cached_seconds']:.1f} s)"
    else:
        yield f"{figures.get('seconds', figures.get('cached_seconds')):.1f} s"


def _quality(figures: dict[str, Any], promised: str = "") -> Iterator[str]:
    if psnr := figures.get("psnr_db"):
        yield f"PSNR {psnr['mean']:.1f} dB{promised}, worst {psnr['min']:.1f}"
    if frames := figures.get("frames"):
        yield f"worst frame {frames['psnr_db']['min']:.1f}"


def _compute(figures: dict[str, Any]) -> Iterator[str]:
    if "compute_ratio" in figures:
        yield f"{figures['compute_ratio']:.0%} of block FLOPs"
        if figures["compute_ratio"] == 1:
            yield "NOTHING WAS SKIPPED"
