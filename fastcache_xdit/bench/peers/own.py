"""FastCache itself, and the two plain ways to save compute: fewer steps, and reuse at a fixed interval."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.approx.pooled import pooled
from fastcache_xdit.bench.peers.peer import SHARES, Peer, Setting, Subject, shares
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.decision.schedule import uniform_mask
from fastcache_xdit.plugin import fastcache, repaired
from fastcache_xdit.telling import quiet


@contextlib.contextmanager
def _cached(subject: Subject, config: FastCacheConfig) -> Iterator[dict[str, Any]]:
    with quiet(), fastcache(subject.pipe, config):
        yield {}


@contextlib.contextmanager
def _from_file(subject: Subject, path: str) -> Iterator[dict[str, Any]]:
    with _cached(subject, FastCacheConfig.from_file(path)) as changes:
        yield changes


@contextlib.contextmanager
def _pooled(subject: Subject, budget: float) -> Iterator[dict[str, Any]]:
    config = FastCacheConfig(budget=budget, learn=0)
    with quiet(), fastcache(subject.pipe, config, calibration=pooled(without=subject.model)):
        yield {}


@contextlib.contextmanager
def _learnt(subject: Subject, budget: float) -> Iterator[dict[str, Any]]:
    known = _lesson(subject, budget)
    with quiet(), fastcache(subject.pipe, FastCacheConfig(budget=budget), calibration=known):
        yield {}


@functools.lru_cache(maxsize=1)
def _lesson(subject: Subject, budget: float) -> Calibration | None:
    """Learn from the rehearsals; the plan before is pooled from other models than this one."""
    config = FastCacheConfig(budget=budget)
    with quiet(), fastcache(subject.pipe, config, calibration=pooled(without=subject.model)) as handle:
        for number in range(config.learn):
            subject.rehearse(number)
        return handle.learnt


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


def _budgets() -> tuple[Setting, ...]:
    return tuple(Setting(f"budget 1/{1 / share:g}", {"budget": share}) for share in SHARES)


def tuned(configs: Mapping[str, Path]) -> Peer:
    """Return FastCache with a model's config files, by label, which `calibrate` and `tune` made on other prompts."""
    settings = tuple(Setting(label, {"path": str(path)}) for label, path in configs.items())
    note = "calibrated and tuned once on other prompts"
    return Peer("FastCache, tuned", "fastcache_xdit", _from_file, settings, parallel=True, ours=True, note=note)


def pooled_plan() -> Peer:
    """Return FastCache on a model of which nothing is known, over its budget."""
    note = "nothing is known of the model: planned from the other shipped ones"
    settings = _budgets()
    return Peer("FastCache, pooled", "fastcache_xdit", _pooled, settings, parallel=True, ours=True, note=note)


def learnt() -> Peer:
    """Return FastCache after the first requests that it has learnt from, over its budget."""
    note = "learnt from its first 4 requests, of one other prompt each, with the default settings"
    return Peer("FastCache, learnt", "fastcache_xdit", _learnt, _budgets(), parallel=True, ours=True, note=note)


def even_masks() -> Peer:
    """Return FastCache with masks of evenly spaced steps and no calibration, for where only the speed counts."""
    settings = shares(stand_in="history")
    return Peer("FastCache, even masks", "fastcache_xdit", _even, settings, parallel=True, ours=True)


def fixed_interval() -> Peer:
    """Return reuse at a fixed interval, as FORA and its kin do, on what all blocks added."""
    note = "what all blocks added is reused between evenly spaced steps, run by our own cache"
    settings = shares(stand_in="reuse")
    return Peer("fixed interval (FORA-style)", "fastcache_xdit", _even, settings, parallel=True, note=note)


def fewer_steps() -> Peer:
    """Return plain generation with fewer steps, without a cache."""
    note = "no cache; compared with the images of all steps"
    return Peer("fewer steps", "diffusers", _fewer, shares(), parallel=True, note=note)
