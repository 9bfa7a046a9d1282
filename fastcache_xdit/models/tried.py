"""What was tried of each transformer class, with tiny models; `python -m tests.models.table` writes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

KINDS = {
    "ulysses_degree": "ulysses",
    "ring_degree": "ring",
    "cfg_degree": "cfg",
    "pipefusion_parallel_degree": "pipefusion",
    "tensor_parallel_degree": "tensor",
    "data_parallel_degree": "data",
}
UNTRIED = "not tried"
FILE = Path(__file__).with_name("tried.json")


@dataclass(frozen=True)
class Tried:
    """One transformer class.

    Attributes:
        granularities: those that work: threshold 0 is exact, planned steps are skipped, disabling restores.
        layouts: kinds of xDiT's parallelism in which it equals one process.
        refused: why not in other layouts, by layout; what one pipeline alone lacks, by "its class, layout". Where it
            says "not tried", xDiT has the layout, and nothing stands in its way.
        partial: whether steps can be computed in part (`tokens`).
        pipelines: diffusers' pipelines that have it.
        streams: what runs through its blocks, by list.
        computed: why other lists of blocks are always computed.
        why_not: why it cannot be cached; empty where it can.
    """

    granularities: tuple[str, ...] = ()
    layouts: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    partial: bool = False
    pipelines: tuple[str, ...] = ()
    streams: Mapping[str, str] = field(default_factory=dict)
    computed: Mapping[str, str] = field(default_factory=dict)
    why_not: str = ""

    def refusal(self, pipeline: str, degree: str) -> str:
        """Return why there is no `degree` with this class in a pipeline; empty where there is, or may be."""
        layout = KINDS[degree]
        reason = self.refused.get(f"{pipeline}, {layout}") or self.refused.get(layout, "")
        return "" if reason.startswith(UNTRIED) else reason


@cache
def all_tried() -> dict[str, Tried]:
    """Return what was tried, by class name."""
    return {name: _read(row) for name, row in json.loads(FILE.read_text())["classes"].items()}


def versions() -> dict[str, str]:
    """Return the versions of the packages that it was tried with."""
    return dict(json.loads(FILE.read_text())["versions"])


def _read(row: Mapping[str, Any]) -> Tried:
    values: dict[str, Any] = {name: tuple(part) if isinstance(part, list) else part for name, part in row.items()}
    return Tried(**values)
