"""Which blocks are skipped together: the granularity of decisions."""

from __future__ import annotations

from collections.abc import Sequence
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


def blocks_of(model: Any, spec: ModelSpec, offsets: dict[str, int], lengths: dict[str, int]) -> list[Block]:
    """The blocks that this rank holds, in running order.

    `offsets` and `lengths` give, per list, the global index of this rank's first block and the length of the whole
    list (they differ from what `model` shows only under PipeFusion).
    """
    blocks, base = [], 0
    for list_name, block_spec in spec.blocks.items():
        first = offsets.get(list_name, 0)
        for local, module in enumerate(getattr(model, list_name)):
            number = first + local
            blocks.append(Block(f"{list_name}.{number}", base + number, module, block_spec))
        base += lengths.get(list_name, len(getattr(model, list_name)))
    return blocks


def whole_key(model: Any, spec: ModelSpec, lengths: dict[str, int], lead_blocks: int) -> str:
    """`Segment.key` of all blocks after the lead blocks, those that other PipeFusion stages hold included."""
    sizes = {name: lengths.get(name, len(getattr(model, name))) for name in spec.blocks}
    names = [f"{name}.{number}" for name, size in sizes.items() for number in range(size)]
    return f"{names[lead_blocks]}..{names[-1]}"


def partition(blocks: Sequence[Block], config: FastCacheConfig) -> tuple[list[Block], list[Segment]]:
    """Split into the lead blocks, which are always computed, and the segments, by `config.granularity`."""
    lead = [block for block in blocks if block.index < config.lead_blocks]
    return lead, segments_of(blocks[len(lead) :], config.granularity, config.groups)


def segments_of(blocks: Sequence[Block], granularity: str, groups: int) -> list[Segment]:
    """What is skipped together of some consecutive blocks: `step` all, `group` each of `groups` groups, `block` one."""
    counts = {"step": 1, "group": groups, "block": len(blocks)}
    pieces = _split(blocks, min(counts[granularity], len(blocks)))
    return [Segment(index, tuple(piece)) for index, piece in enumerate(pieces)]


def _split(blocks: Sequence[Block], count: int) -> list[Sequence[Block]]:
    """`count` consecutive pieces whose lengths differ by at most one."""
    bounds = [round(i * len(blocks) / count) for i in range(count + 1)] if count else [0]
    return [blocks[start:stop] for start, stop in zip(bounds, bounds[1:], strict=False)]
