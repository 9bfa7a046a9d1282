"""What one rank saw of a model in a layout, beside the same model in one process, and what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

CLOSE = 1e-5  # relative
WRONG = 1e-3  # relative; what a defect does to latents is far above it


@dataclass
class Run:
    """What one rank saw of a request; latents are None on ranks that xDiT leaves without."""

    latents: torch.Tensor | None
    choices: list[tuple]
    counts: dict[str, Any]


@dataclass
class Answer:
    """What one rank saw of a model in a layout, beside one process.

    Attributes:
        broken: relative distance of xDiT's own latents from those of diffusers in one process.
        cured: the same distance with our fixes.
        error: the same distance, both with the cache.
        exact: a cache that skips nothing leaves every bit as it is.
        run: the request with the cache.
        alone: the same in one process.
        parts: the rank holds a part of the blocks alone, so that what is counted is a part too.
        told: what skipping blocks is refused with, where they are not known.
    """

    broken: float
    cured: float
    error: float
    exact: bool
    run: Run
    alone: Run
    parts: bool = False
    told: str = ""


def faults_of(answer: Answer) -> list[str]:
    """List what is wrong."""
    wrong = {
        f"xDiT without a cache is {answer.cured:.1e} off": answer.cured > CLOSE,
        f"with the cache it is {answer.error:.1e} off": answer.error > CLOSE,
        "the cache changes bits where nothing is skipped": not answer.exact,
        "not as many blocks as in one process are computed and skipped": not _counts_alike(answer),
        "other decisions than in one process are taken": answer.run.choices != answer.alone.choices,
    }
    return [text for text, is_wrong in wrong.items() if is_wrong]


def _counts_alike(answer: Answer) -> bool:
    blocks = [{name: run.counts[name] for name in ("computed", "approximated")} for run in (answer.run, answer.alone)]
    return (answer.parts or blocks[0] == blocks[1]) and answer.alone.counts["approximated_total"] > 0
