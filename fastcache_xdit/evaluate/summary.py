"""Figures of a job from what every rank saw; the first rank writes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fastcache_xdit.counters import Counters
from fastcache_xdit.evaluate import quality
from fastcache_xdit.evaluate.compare import Comparison
from fastcache_xdit.parallel.topology import Topology

Accuracy = Callable[[Sequence[Any], Sequence[str]], "float | None"]  # (images, prompts) -> share of attributes right


class View(NamedTuple):
    """One rank's part: what it ran, the ranks that had to agree with it, and those that held shards of its sequence."""

    comparison: Comparison
    agreeing: tuple[int, ...]
    shards: tuple[int, ...] = (0,)


def view(comparison: Comparison, topology: Topology | None, cfg_agreement: bool) -> View:
    """This rank's view of the job."""
    if topology is None:
        return View(comparison, (0,))
    return View(comparison, topology.agreeing_ranks(cfg_agreement), topology.sequence_ranks())


def cache_figures(views: Sequence[View], steps: int) -> dict[str, Any]:
    """What was computed and what was not, over all pipeline stages and replicas, and whether ranks agreed.

    Ranks that agree see the same blocks, so one of them speaks for all; `views` are in rank order.
    """
    speakers = [view for rank, view in enumerate(views) if view.agreeing[0] == rank]
    total, flops = Counters(), Counter[str]()
    for speaker in speakers:
        total.add(speaker.comparison.cached.counters)
        flops.update(speaker.comparison.flops)
    first = views[0].comparison.cached.counters
    return {
        "compute_ratio": total.compute_ratio(flops),
        "computed": total.computed.total(),
        "approximated": total.approximated.total(),
        "partial": total.partial.total(),
        "collectives_per_step": first.collectives / (first.requests * steps),
        "ledgers_agree": ledgers_agree(views),
        "fixes": list(views[0].comparison.cached.fixes),
    }


def ledgers_agree(views: Sequence[View]) -> bool:
    """Whether every rank took, decision by decision, what the ranks took that had to agree with it."""
    choices = [[[entry.choice for entry in page] for page in view.comparison.cached.ledgers] for view in views]
    return all(
        view.comparison.cached.agreed and all(choices[other] == choices[rank] for other in view.agreeing)
        for rank, view in enumerate(views)
    )


def images_of(views: Sequence[View], kind: str) -> list[Any]:
    """All images of a kind, in prompt order."""
    found: dict[int, Any] = {}
    for view in views:
        found.update(getattr(view.comparison, kind).images)
    return [found[index] for index in sorted(found)]


def quality_figures(views: Sequence[View], prompts: Sequence[str], accuracy: Accuracy | None) -> dict[str, Any]:
    """Time and likeness of the cached images beside the uncached ones of the same seeds."""
    cached, uncached = images_of(views, "cached"), images_of(views, "uncached")
    pixels = quality.to_tensor(cached), quality.to_tensor(uncached)
    baseline_seconds, cached_seconds = seconds_of(views, "uncached"), seconds_of(views, "cached")
    psnr = quality.psnr_db(*pixels)
    figures = {
        "baseline_seconds": baseline_seconds,
        "cached_seconds": cached_seconds,
        "speedup": baseline_seconds / cached_seconds,
        "psnr_db": quality.mean_and_min(psnr),
        "psnr_db_each": psnr,
        "ssim": quality.mean_and_min(quality.ssim(*pixels)),
    }
    if accuracy and (score := accuracy(cached, prompts)) is not None:
        figures["prompt_accuracy"] = {"cached": score, "uncached": accuracy(uncached, prompts)}
    return figures


def seconds_of(views: Sequence[View], kind: str) -> float:
    """Wall time of a kind: the slowest rank's."""
    return max(getattr(view.comparison, kind).seconds for view in views)


def pace(speedup: float) -> str:
    """A ratio of times in words."""
    return f"{speedup:.2f}x faster" if speedup >= 1 else f"{1 / speedup:.2f}x slower"


def line(figures: dict[str, Any], report: Any) -> str:
    """A job in one line."""
    parts = [f"{figures['num_images']} image{'s' * (figures['num_images'] > 1)}"]
    if "speedup" in figures:
        seconds = f"{figures['baseline_seconds']:.1f} s -> {figures['cached_seconds']:.1f} s"
        psnr = figures["psnr_db"]
        parts += [
            f"{pace(figures['speedup'])} ({seconds})",
            f"PSNR {psnr['mean']:.1f} dB, worst {psnr['min']:.1f}",
        ]
    else:
        parts.append(f"{figures['seconds']:.1f} s")
    if "compute_ratio" in figures:
        parts.append(f"{figures['compute_ratio']:.0%} of block FLOPs")
        parts.append("ranks agree" if figures["ledgers_agree"] else "RANKS DISAGREE")
    if "prompt_accuracy" in figures:
        accuracy = figures["prompt_accuracy"]
        parts.append(f"prompt accuracy {accuracy['cached']:.0%} (uncached {accuracy['uncached']:.0%})")
    return f"fastcache: {', '.join(parts)} -> {report}"
