"""Runs each of xDiT's pipelines in each layout on this rank, beside the same pipeline of diffusers in one process."""

from __future__ import annotations

import math
from typing import Any

import torch

from fastcache_xdit import FastCacheConfig, enable, fastcache
from fastcache_xdit.errors import UsageError
from fastcache_xdit.plugin import repaired
from tests.models.loop import MASK, STEPS
from tests.parallel.answers import CLOSE, WRONG, Answer, Run
from tests.parallel.cached import relative
from tests.parallel.pipeline_zoo import LAYOUTS, NO_FLASH, PIPELINES, generate, plain, wrapper
from tests.parallel.ranks import answer_or_text, engine


def pipeline_answers() -> dict[str, dict[str, Answer | str]]:
    """Return by pipeline and layout an answer, or why there is none."""
    return {kind: _of_pipeline(kind) for kind in PIPELINES}


def _of_pipeline(kind: str) -> dict[str, Answer | str]:
    pipe = plain(kind)
    truth = generate(pipe, kind)
    alone = {granularity: _run(pipe, kind, MASK, granularity) for granularity in _granularities(kind)}
    return {layout: _answer_or_text(kind, layout, truth, alone) for layout in LAYOUTS}


def _granularities(kind: str) -> tuple[str, ...]:
    """Those that are tried: a U-Net has no list of blocks."""
    return ("output",) if kind == "StableDiffusionXLPipeline" else ("step", "output")


def _answer_or_text(kind: str, layout: str, truth: torch.Tensor, alone: dict[str, Run]) -> Answer | str:
    if PIPELINES[kind].why.get(layout) == NO_FLASH:
        return NO_FLASH
    return answer_or_text(lambda: _in_layout(kind, layout, truth, alone))


def _in_layout(kind: str, layout: str, truth: torch.Tensor, alone: dict[str, Run]) -> Answer | str:
    offered = layout in PIPELINES[kind].layouts
    usual = {} if offered else {"warmup_steps": 1}  # xDiT hangs in some that it lacks
    pipe = wrapper(kind)(plain(kind), engine(**{"data_parallel_degree": 1, **LAYOUTS[layout], **usual}))
    return _answer(pipe, kind, layout, truth, alone) if offered else _why_not(pipe, kind, truth)


def _answer(pipe: Any, kind: str, layout: str, truth: torch.Tensor, alone: dict[str, Run]) -> Answer:
    stages = layout == "pipefusion"
    granularity = "output" if stages and not PIPELINES[kind].known else _granularities(kind)[0]
    broken = generate(pipe, kind)
    with repaired(pipe):
        cured = generate(pipe, kind)
    run, expected = _run(pipe, kind, MASK, granularity), alone[granularity]
    whole = _run(pipe, kind, "1" * STEPS, granularity).latents
    exact = cured is None or (_off(whole, cured) < CLOSE if stages else torch.equal(whole, cured))
    errors = (_off(broken, truth), _off(cured, truth), _off(run.latents, expected.latents))
    return Answer(*errors, exact, run, expected, stages, _refusal(pipe) if granularity == "output" and stages else "")


def _refusal(pipe: Any) -> str:
    try:
        enable(pipe, FastCacheConfig.scheduled(MASK)).disable()
    except UsageError as error:
        return str(error)
    return ""


def _off(latents: torch.Tensor | None, truth: torch.Tensor) -> float:
    """Return the distance of what this rank has; never raise, as the other ranks would wait for this one."""
    if latents is None:
        return 0.0
    return relative(latents, truth) if latents.shape == truth.shape else math.inf


def _run(pipe: Any, kind: str, mask: str, granularity: str) -> Run:
    config = FastCacheConfig.scheduled(mask).model_copy(update={"granularity": granularity})
    with fastcache(pipe, config) as handle:
        latents = generate(pipe, kind)
        seen = handle.report()
    return Run(latents, sorted({(entry.step, entry.skip) for entry in seen.ledger}), seen.counters.to_dict())


def _why_not(pipe: Any, kind: str, truth: torch.Tensor) -> str:
    """Say what xDiT does in a layout that it does not have for a pipeline: it shares nothing, or it is wrong."""
    error = _off(generate(pipe, kind), truth)
    return f"{error:.1e} off" if error > WRONG else "every rank computes all"
