"""FastCache itself, and the two plain ways to save: fewer steps, and reuse at a fixed interval."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from fastcache_xdit.bench.peers.peer import Peer, Setting, Site
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.decision.schedule import uniform_mask
from fastcache_xdit.plugin import fastcache, repaired

SHARES = (1 / 1.5, 1 / 2, 1 / 2.5, 1 / 3, 1 / 4, 1 / 5)
THRESHOLDS = (0.05, 0.1, 0.2, 0.4, 0.8)  # the second is the default
SCHEDULED: dict[str, Any] = {
    "test": "none",
    "warmup_steps": 1,
    "cooldown_steps": 0,
    "max_consecutive_skips": 1000,
    "error_budget": 1e9,
    "lead_blocks": 0,
}


@contextlib.contextmanager
def _cached(site: Site, config: FastCacheConfig) -> Iterator[dict[str, Any]]:
    with fastcache(site.pipe, config):
        yield {}


@contextlib.contextmanager
def _from_file(site: Site, path: str) -> Iterator[dict[str, Any]]:
    with _cached(site, FastCacheConfig.from_file(path)) as changes:
        yield changes


@contextlib.contextmanager
def _online(site: Site, threshold: float) -> Iterator[dict[str, Any]]:
    # The budget grows with the threshold as it does in the defaults, or it would be what bounds a bold setting.
    with _cached(site, FastCacheConfig(threshold=threshold, error_budget=2 * threshold)) as changes:
        yield changes


@contextlib.contextmanager
def _even(site: Site, share: float, stand_in: Literal["reuse", "history"]) -> Iterator[dict[str, Any]]:
    mask = uniform_mask(site.steps, round(share * site.steps))
    config = FastCacheConfig(**SCHEDULED, stand_in=stand_in, schedule={site.steps: mask})
    with _cached(site, config) as changes:
        yield changes


@contextlib.contextmanager
def _fewer(site: Site, share: float) -> Iterator[dict[str, Any]]:
    with repaired(site.pipe):
        yield {"num_inference_steps": round(share * site.steps)}


def _shares(**more: Any) -> tuple[Setting, ...]:
    return tuple(Setting(f"1/{1 / share:g}", {"share": share, **more}) for share in SHARES)


def tuned(configs: Mapping[str, Path]) -> Peer:
    """FastCache with the config files of a model, by label, which `calibrate` and `tune` made on other prompts."""
    settings = tuple(Setting(label, {"path": str(path)}) for label, path in configs.items())
    note = "calibrated and tuned once on other prompts"
    return Peer("FastCache, tuned", "fastcache_xdit", _from_file, settings, parallel=True, ours=True, note=note)


def online() -> Peer:
    """FastCache as it is without a calibration, over its threshold."""
    settings = tuple(Setting(f"threshold {value:g}", {"threshold": value}) for value in THRESHOLDS)
    return Peer("FastCache, online", "fastcache_xdit", _online, settings, parallel=True, ours=True)


def even_masks() -> Peer:
    """FastCache with a mask of evenly spaced steps and nothing calibrated, where only the pace counts."""
    settings = _shares(stand_in="history")
    return Peer("FastCache, even masks", "fastcache_xdit", _even, settings, parallel=True, ours=True)


def fixed_interval() -> Peer:
    """What FORA and its kin do, on the residual of all blocks."""
    note = "what all blocks added is reused between evenly spaced steps, run by our own cache"
    settings = _shares(stand_in="reuse")
    return Peer("fixed interval (FORA-style)", "fastcache_xdit", _even, settings, parallel=True, note=note)


def fewer_steps() -> Peer:
    """No cache at all."""
    note = "no cache; compared with the images of all steps"
    return Peer("fewer steps", "diffusers", _fewer, _shares(), parallel=True, note=note)
