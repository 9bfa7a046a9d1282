"""cache-dit: DBCache, alone and with its calibrators, its step masks (SCM), and DBPrune."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from fastcache_xdit.bench.peers.peer import Peer, Setting, Subject

# (warm-up, most cached steps in a row, threshold): the steps of its documentation from careful to ultra, then bolder
# ones, so that the sweep reaches as far as any other.
LADDER = ((4, 2, 0.08), (4, 3, 0.12), (4, 4, 0.24), (4, 6, 0.5), (3, 6, 0.8), (2, 8, 0.95))
MASKS = ("slow", "medium", "fast", "ultra")
PRUNING = (0.04, 0.08, 0.12)


def _library() -> Any:
    os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "error")  # read when it is imported
    import cache_dit

    return cache_dit


@contextlib.contextmanager
def _enabled(subject: Subject, config: Any, calibrator: Any = None) -> Iterator[dict[str, Any]]:
    """Switch it on and off again: it patches the pipeline's class, and so all pipelines of that class."""
    library = _library()
    library.enable_cache(subject.pipe, cache_config=config, calibrator_config=calibrator)
    try:
        yield {}
    finally:
        library.disable_cache(subject.pipe)


@contextlib.contextmanager
def _cached(subject: Subject, calibrator: str | None = None, mask: str | None = None, **knobs: Any) -> Iterator[dict]:
    library = _library()
    if mask is not None:
        steps = library.steps_mask(mask_policy=mask, total_steps=subject.steps)
        knobs |= {"steps_computation_mask": steps, "steps_computation_policy": "dynamic"}
    config = library.DBCacheConfig(num_inference_steps=subject.steps, **knobs)
    with _enabled(subject, config, _calibrator(library, calibrator)) as changes:
        yield changes


@contextlib.contextmanager
def _pruned(subject: Subject, **knobs: Any) -> Iterator[dict[str, Any]]:
    config = _library().DBPruneConfig(num_inference_steps=subject.steps, **knobs)
    with _enabled(subject, config) as changes:
        yield changes


def _calibrator(library: Any, name: str | None) -> Any:
    if name == "taylorseer":
        return library.TaylorSeerCalibratorConfig(taylorseer_order=1)
    return {"dmd": library.DMDCalibratorConfig, "foca": library.FoCaCalibratorConfig}[name]() if name else None


def _rung(warm_up: int, in_a_row: int, threshold: float) -> Setting:
    knobs = {
        "Fn_compute_blocks": 1,
        "Bn_compute_blocks": 0,
        "max_warmup_steps": warm_up,
        "max_continuous_cached_steps": in_a_row,
        "residual_diff_threshold": threshold,
    }
    return Setting(f"F1B0 W{warm_up} MC{in_a_row} R{threshold:g}", knobs)


def _extended(settings: tuple[Setting, ...], **more: Any) -> tuple[Setting, ...]:
    return tuple(Setting(setting.label, setting.knobs | more) for setting in settings)


def peers() -> list[Peer]:
    """Return all kinds of cache-dit."""
    ladder = tuple(_rung(*rung) for rung in LADDER)
    defaults = Setting("defaults: F8B0 W8 R0.08", {})
    bold = {"Fn_compute_blocks": 1, "Bn_compute_blocks": 0, "max_warmup_steps": 2, "residual_diff_threshold": 0.95}
    masks = tuple(Setting(name, {"mask": name, **bold, "calibrator": "taylorseer"}) for name in MASKS)
    pruning = tuple(
        Setting(f"R{value:g}", {"Fn_compute_blocks": 1, "Bn_compute_blocks": 0, "residual_diff_threshold": value})
        for value in PRUNING
    )
    return [
        Peer("cache-dit DBCache", "cache-dit", _cached, (defaults, *ladder)),
        Peer("cache-dit DBCache + TaylorSeer", "cache-dit", _cached, _extended(ladder, calibrator="taylorseer")),
        Peer("cache-dit DBCache + DMD", "cache-dit", _cached, _extended(ladder, calibrator="dmd")),
        Peer("cache-dit DBCache + FoCa", "cache-dit", _cached, _extended(ladder, calibrator="foca")),
        Peer("cache-dit SCM + TaylorSeer", "cache-dit", _cached, masks, note="the mask decides, threshold 0.95"),
        Peer("cache-dit DBPrune", "cache-dit", _pruned, pruning),
    ]
