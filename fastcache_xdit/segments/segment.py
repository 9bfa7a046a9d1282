"""Segments: the blocks that are skipped together, by the granularity of decisions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.models.spec import BlockSpec, ModelSpec


@dataclass(frozen=True)
class Block:
    """A transformer block of this rank; name and index are those in the whole model, over all PipeFusion stages.

    With `is_joint` a segment begins with it, because the model changes the streams before it.
    """

    name: str
    index: int
    module: nn.Module
    spec: BlockSpec
    is_joint: bool = False


@dataclass(frozen=True)
class Segment:
    """Consecutive blocks that share one decision."""

    index: int
    blocks: tuple[Block, ...]

    @property
    def name(self) -> str:
        """Name of the first block."""
        return self.blocks[0].name

    @property
    def key(self) -> str:
        """Names of the first and the last block; the key of the segment in a calibration."""
        return f"{self.blocks[0].name}..{self.blocks[-1].name}"


@dataclass(frozen=True)
class Span:
    """The part of a block list that this rank holds: index of its first block, and length of the whole list."""

    first: int
    total: int


def blocks_of(model: Any, spec: ModelSpec, spans: Mapping[str, Span]) -> list[Block]:
    """Return the blocks that this rank holds, in running order.

    Args:
        model: the module that holds the block lists.
        spec: description of the model.
        spans: by name of a list, the part that this rank holds; a list without a span is complete.
    """
    if spec.order:
        return [_block(model, spec, name, index) for index, name in enumerate(spec.order)]
    blocks, offset = [], 0
    for list_name, block_spec in spec.blocks.items():
        span = spans.get(list_name) or Span(0, len(getattr(model, list_name)))
        for number, module in enumerate(getattr(model, list_name), start=span.first):
            blocks.append(Block(f"{list_name}.{number}", offset + number, module, block_spec))
        offset += span.total
    return blocks


def _block(model: Any, spec: ModelSpec, name: str, index: int) -> Block:
    return Block(name, index, model.get_submodule(name), spec.blocks[name.rpartition(".")[0]], name in spec.joints)


def whole_key(model: Any, spec: ModelSpec, spans: Mapping[str, Span], lead_blocks: int) -> str:
    """Return `Segment.key` of all blocks after the lead blocks, including those of other PipeFusion stages."""
    totals = {name: spans[name].total if name in spans else len(getattr(model, name)) for name in spec.blocks}
    names = [f"{name}.{number}" for name, total in totals.items() for number in range(total)]
    return f"{names[lead_blocks]}..{names[-1]}"


def partition(blocks: Sequence[Block], config: FastCacheConfig) -> tuple[list[Block], list[Segment]]:
    """Split blocks into the lead blocks, which are always computed, and segments of `config.granularity`."""
    lead = [block for block in blocks if block.index < config.lead_blocks]
    return lead, segments_of(blocks[len(lead) :], config.granularity, config.groups)


def segments_of(blocks: Sequence[Block], granularity: str, groups: int) -> list[Segment]:
    """Cut blocks into segments: all blocks (`step`), each of `groups` groups (`group`), or each block (`block`).

    There are more of them where a joint is inside one.
    """
    counts = {"step": 1, "group": groups, "block": len(blocks)}
    pieces = _split(blocks, min(counts[granularity], len(blocks)))
    parts = [part for piece in pieces for part in _at_joints(piece)]
    return [Segment(index, tuple(part)) for index, part in enumerate(parts)]


def _at_joints(blocks: Sequence[Block]) -> Iterator[Sequence[Block]]:
    starts = [number for number, block in enumerate(blocks) if block.is_joint and number > 0]
    for start, stop in zip([0, *starts], [*starts, len(blocks)], strict=True):
        if start < stop:
            yield blocks[start:stop]


def _split(blocks: Sequence[Block], count: int) -> list[Sequence[Block]]:
    """Cut blocks into `count` consecutive pieces whose lengths differ by at most one."""
    bounds = [round(i * len(blocks) / count) for i in range(count + 1)] if count else [0]
    return [blocks[start:stop] for start, stop in zip(bounds, bounds[1:], strict=False)]
