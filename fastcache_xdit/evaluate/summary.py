"""Sum up a job from what every rank saw; the first rank writes the figures."""

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
    """What one rank ran, the ranks that had to agree with it, and those that held shards of its sequence."""

    comparison: Comparison
    agreeing: tuple[int, ...]
    shards: tuple[int, ...] = (0,)


def view(comparison: Comparison, topology: Topology, cfg_agreement: bool) -> View:
    """Build this rank's view of the job."""
    return View(comparison, topology.agreeing_ranks(cfg_agreement), topology.sequence_ranks())


def cache_figures(views: Sequence[View], steps: int) -> dict[str, Any]:
    """Count what was computed over all pipeline stages and replicas, and check that ranks agreed.

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
    """Tell whether every rank decided, each time, as the ranks that had to agree with it."""
    choices = [[[entry.choice for entry in page] for page in view.comparison.cached.ledgers] for view in views]
    return all(
        view.comparison.cached.agreed and all(choices[other] == choices[rank] for other in view.agreeing)
        for rank, view in enumerate(views)
    )


def images_of(views: Sequence[View], kind: str) -> list[Any]:
    """Collect all images of a kind (`cached` or `uncached`), in prompt order."""
    images: dict[int, Any] = {}
    for view in views:
        images.update(getattr(view.comparison, kind).images)
    return [images[index] for index in sorted(images)]


def quality_figures(views: Sequence[View], prompts: Sequence[str], accuracy: Accuracy | None) -> dict[str, Any]:
    """Compare time and images of the cached run with those of the uncached one, seed by seed."""
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
    """Return the wall time of a kind, in seconds: the slowest rank's."""
    return max(getattr(view.comparison, kind).seconds for view in views)


def pace(speedup: float) -> str:
    """Put a ratio of times into words."""
    return f"{speedup:.2f}x faster" if speedup >= 1 else f"{1 / speedup:.2f}x slower"


def line(figures: dict[str, Any], report: Any) -> str:
    """Sum up a job in one line."""
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
