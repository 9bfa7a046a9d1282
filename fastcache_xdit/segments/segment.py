"""Which blocks are skipped together: the granularity of decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.models.spec import BlockSpec, ModelSpec


@dataclass(frozen=True)
class Block:
    """One transformer block of this rank; `name` is global, because PipeFusion slices the lists."""

    name: str
    index: int
    module: nn.Module
    spec: BlockSpec


@dataclass(frozen=True)
class Segment:
    """Consecutive blocks with one decision."""

    index: int
    blocks: tuple[Block, ...]

    @property
    def name(self) -> str:
        """Name of the first block."""
        return self.blocks[0].name

    @property
    def key(self) -> str:
        """Names of the first and the last block: under which a calibration keeps it."""
        return f"{self.blocks[0].name}..{self.blocks[-1].name}"


@dataclass(frozen=True)
class Span:
    """Where this rank's blocks are in a whole block list: global index of the first one, and the list's length."""

    first: int
    total: int


def blocks_of(model: Any, spec: ModelSpec, spans: Mapping[str, Span]) -> list[Block]:
    """Return the blocks that this rank holds, in running order.

    `spans`, by list, differ from what `model` shows only under PipeFusion; a list without one is whole.
    """
    blocks, base = [], 0
    for list_name, block_spec in spec.blocks.items():
        span = spans.get(list_name) or Span(0, len(getattr(model, list_name)))
        for number, module in enumerate(getattr(model, list_name), start=span.first):
            blocks.append(Block(f"{list_name}.{number}", base + number, module, block_spec))
        base += span.total
    return blocks


def whole_key(model: Any, spec: ModelSpec, spans: Mapping[str, Span], lead_blocks: int) -> str:
    """Return `Segment.key` of all blocks after the lead blocks, those that other PipeFusion stages hold included."""
    totals = {name: spans[name].total if name in spans else len(getattr(model, name)) for name in spec.blocks}
    names = [f"{name}.{number}" for name, total in totals.items() for number in range(total)]
    return f"{names[lead_blocks]}..{names[-1]}"


def partition(blocks: Sequence[Block], config: FastCacheConfig) -> tuple[list[Block], list[Segment]]:
    """Split blocks into the lead blocks, which are always computed, and the segments, by `config.granularity`."""
    lead = [block for block in blocks if block.index < config.lead_blocks]
    return lead, segments_of(blocks[len(lead) :], config.granularity, config.groups)


def segments_of(blocks: Sequence[Block], granularity: str, groups: int) -> list[Segment]:
    """Cut blocks into what is skipped together: `step` all, `group` each of `groups` groups, `block` each block."""
    counts = {"step": 1, "group": groups, "block": len(blocks)}
    pieces = _split(blocks, min(counts[granularity], len(blocks)))
    return [Segment(index, tuple(piece)) for index, piece in enumerate(pieces)]


def _split(blocks: Sequence[Block], count: int) -> list[Sequence[Block]]:
    """`count` consecutive pieces whose lengths differ by at most one."""
    bounds = [round(i * len(blocks) / count) for i in range(count + 1)] if count else [0]
    return [blocks[start:stop] for start, stop in zip(bounds, bounds[1:], strict=False)]
