"""The attention modules inside segments, and their projections to keys and values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from fastcache_xdit.segments.segment import Block, Segment


def attentions(segments: Iterable[Segment]) -> Iterator[tuple[str, Any]]:
    """The attention modules that see image tokens, by name."""
    for segment in segments:
        for block in segment.blocks:
            yield from attentions_of(block)


def projections(segments: Iterable[Segment]) -> Iterator[tuple[str, Any]]:
    """Their layers that make keys and values, by name."""
    for name, attention in attentions(segments):
        yield f"{name} keys", attention.to_k
        yield f"{name} values", attention.to_v


def attentions_of(block: Block) -> Iterator[tuple[str, Any]]:
    """The attention modules of one block that see image tokens, by name."""
    for name in block.spec.attentions:
        attention = getattr(block.module, name, None)
        if attention is not None:  # the second one of SD3 exists in some blocks only
            yield f"{block.name}.{name}", attention
