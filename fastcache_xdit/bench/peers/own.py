"""FastCache itself, and the two plain ways to save compute: fewer steps, and reuse at a fixed interval."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from fastcache_xdit.bench.peers.peer import Peer, Setting, Subject
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.decision.schedule import uniform_mask
from fastcache_xdit.plugin import fastcache, repaired

SHARES = (1 / 1.5, 1 / 2, 1 / 2.5, 1 / 3, 1 / 4, 1 / 5)


@contextlib.contextmanager
def _cached(subject: Subject, config: FastCacheConfig) -> Iterator[dict[str, Any]]:
    with fastcache(subject.pipe, config):
        yield {}


@contextlib.contextmanager
def _from_file(subject: Subject, path: str) -> Iterator[dict[str, Any]]:
    with _cached(subject, FastCacheConfig.from_file(path)) as changes:
        yield changes


@contextlib.contextmanager
def _planned(subject: Subject, share: float) -> Iterator[dict[str, Any]]:
    with _cached(subject, FastCacheConfig(budget=share, learn=0)) as changes:
        yield changes


@contextlib.contextmanager
def _even(subject: Subject, share: float, stand_in: Literal["reuse", "history"]) -> Iterator[dict[str, Any]]:
    mask = uniform_mask(subject.steps, round(share * subject.steps))
    config = FastCacheConfig.scheduled(mask, lead_blocks=0, stand_in=stand_in)
    with _cached(subject, config) as changes:
        yield changes


@contextlib.contextmanager
def _fewer(subject: Subject, share: float) -> Iterator[dict[str, Any]]:
    with repaired(subject.pipe):
        yield {"num_inference_steps": round(share * subject.steps)}


def _shares(**more: Any) -> tuple[Setting, ...]:
    return tuple(Setting(f"1/{1 / share:g}", {"share": share, **more}) for share in SHARES)


def tuned(configs: Mapping[str, Path]) -> Peer:
    """Return FastCache with a model's config files, by label, which `calibrate` and `tune` made on other prompts."""
    settings = tuple(Setting(label, {"path": str(path)}) for label, path in configs.items())
    note = "calibrated and tuned once on other prompts"
    return Peer("FastCache, tuned", "fastcache_xdit", _from_file, settings, parallel=True, ours=True, note=note)


def planned() -> Peer:
    """Return FastCache as it begins, before it has learnt anything of a model."""
    note = "planned from other models, before anything is learnt"
    return Peer("FastCache, planned", "fastcache_xdit", _planned, _shares(), parallel=True, ours=True, note=note)


def even_masks() -> Peer:
    """Return FastCache with masks of evenly spaced steps and no calibration, for where only the speed counts."""
    settings = _shares(stand_in="history")
    return Peer("FastCache, even masks", "fastcache_xdit", _even, settings, parallel=True, ours=True)


def fixed_interval() -> Peer:
    """Return reuse at a fixed interval, as FORA and its kin do, on what all blocks added."""
    note = "what all blocks added is reused between evenly spaced steps, run by our own cache"
    settings = _shares(stand_in="reuse")
    return Peer("fixed interval (FORA-style)", "fastcache_xdit", _even, settings, parallel=True, note=note)


def fewer_steps() -> Peer:
    """Return plain generation with fewer steps, without a cache."""
    note = "no cache; compared with the images of all steps"
    return Peer("fewer steps", "diffusers", _fewer, _shares(), parallel=True, note=note)
