"""What came of one setting of one cache."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from fastcache_xdit.bench.peers.score import Scores

RAN, NOTHING, REFUSED, CRASHED, LEFT_OUT = "ran", "did nothing", "refused", "crashed", "left out"
NOT_INSTALLED = "not installed"


@dataclass(frozen=True)
class Measurement:
    """One setting of one cache; figures are None where it did not run.

    Attributes:
        peer, setting: names in tables.
        status: one of the words above.
        error: why it did not run, in the cache's own words.
        compute: block FLOPs executed over those of the uncached request.
        transformer: the same of the whole transformer.
        steps: what each step executed, as a share of an uncached step.
        speedup: wall time uncached over cached, pair by pair: median, least, most, repetitions.
        restored: uncached requests afterwards gave the same bits as before.
        scores: of the pictures, where they are judged.
        pictures: [N, 3, H, W] in 0..1.
    """

    peer: str
    setting: str
    status: str
    error: str = ""
    compute: float | None = None
    transformer: float | None = None
    steps: tuple[float, ...] = ()
    speedup: dict[str, float] | None = None
    restored: bool | None = None
    scores: Scores | None = None
    pictures: torch.Tensor | None = field(default=None, repr=False, compare=False)
