"""Sum up a job from what every rank saw; the first rank writes the figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fastcache_xdit.clips import Clip
from fastcache_xdit.counters import Counters
from fastcache_xdit.evaluate import quality
from fastcache_xdit.evaluate.compare import Comparison, Served
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


def requests_of(view: View, kind: str, since: int = 0) -> list[Served]:
    """Return a rank's requests of a kind (`cached` or `uncached`), from number `since` on."""
    served: list[Served] = getattr(view.comparison, kind).served
    return served[since:]


def speakers(views: Sequence[View]) -> list[View]:
    """Return one of each set of agreeing ranks, which see the same blocks; `views` are in rank order."""
    return [view for rank, view in enumerate(views) if view.agreeing[0] == rank]


def compute_ratio(views: Sequence[View], since: int = 0) -> float:
    """Return the executed share of all block work, over all stages and replicas, from request `since` on."""
    flops = Counter[str]()
    for speaker in speakers(views):
        flops.update(speaker.comparison.flops)
    return _total(speakers(views), since).compute_ratio(flops)


def cache_figures(views: Sequence[View], steps: int) -> dict[str, Any]:
    """Count what was computed over all pipeline stages and replicas, and check that ranks agreed."""
    total, first = _total(speakers(views)), _total(views[:1])
    return {
        "compute_ratio": compute_ratio(views),
        "computed": total.computed.total(),
        "approximated": total.approximated.total(),
        "partial": total.partial.total(),
        "collectives_per_step": first.collectives / (first.requests * steps),
        "ledgers_agree": ledgers_agree(views),
        "agreeing_ranks": max(len(view.agreeing) for view in views),
        "fixes": list(views[0].comparison.cached.fixes),
    }


def ledgers_agree(views: Sequence[View]) -> bool:
    """Tell whether every rank decided, each time, as the ranks that had to agree with it."""
    choices = [[[entry.choice for entry in served.ledger] for served in requests_of(view, "cached")] for view in views]
    return all(
        view.comparison.cached.agreed and all(choices[other] == choices[rank] for other in view.agreeing)
        for rank, view in enumerate(views)
    )


def images_of(views: Sequence[View], kind: str) -> list[Any]:
    """Collect all images of a kind (`cached` or `uncached`), in prompt order."""
    held = [served.images for view in views for served in requests_of(view, kind)]
    images: dict[int, Any] = {index: image for part in held for index, image in part.items()}
    return [images[index] for index in sorted(images)]


def images_in_full(views: Sequence[View]) -> set[int]:
    """Return the indices of the images of requests in which no rank skipped anything: they are exact."""
    requests = list(zip(*(requests_of(view, "cached") for view in views), strict=True))
    in_full = [parts for parts in requests if all(served.is_in_full for served in parts)]
    return {index for parts in in_full for served in parts for index in served.images}


def quality_figures(views: Sequence[View], prompts: Sequence[str], accuracy: Accuracy | None) -> dict[str, Any]:
    """Compare time and images of the cached run with those of the uncached one, seed by seed.

    Images that were computed in full are exact. PSNR and SSIM are of the others, unless there are no others.
    """
    cached, uncached = images_of(views, "cached"), images_of(views, "uncached")
    alike = [quality.likeness(*pair) for pair in zip(cached, uncached, strict=True)]
    baseline_seconds, cached_seconds = seconds_of(views, "uncached"), seconds_of(views, "cached")
    in_full = images_in_full(views)
    judged = [each for index, each in enumerate(alike) if index not in in_full] or alike
    figures = {
        "baseline_seconds": baseline_seconds,
        "cached_seconds": cached_seconds,
        "speedup": baseline_seconds / cached_seconds,
        "num_images_in_full": len(in_full),
        "psnr_db": quality.mean_and_min([each.psnr_db for each in judged]),
        "psnr_db_each": [each.psnr_db for each in alike],
        "ssim": quality.mean_and_min([each.ssim for each in judged]),
    }
    if any(isinstance(picture, Clip) for picture in cached):
        figures["frames"] = _frame_figures(judged) | {"each": [_frame_figures([each]) for each in alike]}
    if accuracy and (score := accuracy(cached, prompts)) is not None:
        figures["prompt_accuracy"] = {"cached": score, "uncached": accuracy(uncached, prompts)}
    return figures


def _frame_figures(clips: Sequence[quality.Likeness]) -> dict[str, Any]:
    """Return mean and worst over all frames of some clips."""
    return {
        "psnr_db": quality.mean_and_min([value for each in clips for value in each.frames_psnr_db]),
        "ssim": quality.mean_and_min([value for each in clips for value in each.frames_ssim]),
    }


def not_finite(views: Sequence[View]) -> dict[str, list[int]]:
    """Return the indices of the images that are not finite, by kind; kinds that have none are left out."""
    indices = {
        kind: sorted(index for view in views for served in requests_of(view, kind) for index in served.not_finite)
        for kind in ("cached", "uncached")
    }
    return {kind: found for kind, found in indices.items() if found}


def clip_figures(views: Sequence[View]) -> dict[str, Any]:
    """Say what the job's clips are; nothing of images."""
    first = images_of(views, "cached")[0]
    return {"clips": {"num_frames": len(first.frames), "fps": first.fps}} if isinstance(first, Clip) else {}


def seconds_of(views: Sequence[View], kind: str, since: int = 0) -> float:
    """Return the wall time of a kind from request `since` on, in seconds: the slowest rank's."""
    return max(sum(served.seconds for served in requests_of(view, kind, since)) for view in views)


def _total(views: Sequence[View], since: int = 0) -> Counters:
    total = Counters()
    for each in views:
        for served in requests_of(each, "cached", since):
            total.add(served.counters)
    return total
