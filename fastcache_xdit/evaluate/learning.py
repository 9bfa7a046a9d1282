"""Figures of what a job learnt: from which of its requests, for how long, and what came of it afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastcache_xdit.evaluate import quality
from fastcache_xdit.evaluate.summary import View, compute_ratio, images_of, requests_of, seconds_of


def recorded(views: Sequence[View]) -> list[int]:
    """Return for each rank how many requests were computed in full to learn from."""
    return [sum(served.is_recorded for served in requests_of(view, "cached")) for view in views]


def switch(views: Sequence[View]) -> int | None:
    """Return the number of the first request, counted from 0, that was planned by what this job learnt; None without.

    Where a later guard made the job learn again, it is the first time.
    """
    requests = [served.is_recorded for served in requests_of(views[0], "cached")]
    pairs = zip(requests, requests[1:], strict=False)
    return next((number + 1 for number, (before, now) in enumerate(pairs) if before and not now), None)


def learning_figures(views: Sequence[View], figures: dict[str, Any]) -> dict[str, Any]:
    """Return what was planned by, and if this job learnt, how; `figures` are those of its quality, if it compared."""
    cached = views[0].comparison.cached
    learnt: dict[str, Any] = {
        "plan": cached.plan,
        "promised_db": cached.promise,
        "learning": None,
        "after_switch": None,
    }
    if any(requests := recorded(views)):
        learnt["learning"] = {
            "requests": max(requests),
            "requests_by_rank": requests,
            "seconds": max(view.comparison.cached.seconds_learning for view in views),
        }
    since = switch(views)
    return learnt if since is None else {**learnt, "after_switch": _after(views, since, figures)}


def _after(views: Sequence[View], since: int, figures: dict[str, Any]) -> dict[str, Any]:
    images = sorted(index for view in views for served in requests_of(view, "cached", since) for index in served.images)
    seconds = seconds_of(views, "cached", since)
    after = {
        "first_request": since,
        "num_images": len(images),
        "compute_ratio": compute_ratio(views, since),
        "cached_seconds": seconds,
    }
    if not images_of(views, "uncached"):
        return after
    baseline = seconds_of(views, "uncached", since)
    psnr = quality.mean_and_min([figures["psnr_db_each"][index] for index in images])
    return {**after, "baseline_seconds": baseline, "speedup": baseline / seconds, "psnr_db": psnr}
