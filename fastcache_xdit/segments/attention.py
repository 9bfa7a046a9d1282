"""The attention modules inside segments, and their projections to keys and values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from fastcache_xdit.segments.segment import Block, Segment


def attentions(segments: Iterable[Segment]) -> Iterator[tuple[str, Any]]:
    """Yield the attention modules of the segments that process image tokens, with their names."""
    for segment in segments:
        for block in segment.blocks:
            yield from attentions_of(block)


def projections(segments: Iterable[Segment]) -> Iterator[tuple[str, Any]]:
    """Yield the layers of these attention modules that compute keys and values, with their names."""
    for name, attention in attentions(segments):
        yield f"{name} keys", attention.to_k
        yield f"{name} values", attention.to_v


def attentions_of(block: Block) -> Iterator[tuple[str, Any]]:
    """Yield the attention modules of a block that process image tokens, with their names."""
    for name in block.spec.attentions:
        attention = getattr(block.module, name, None)
        if attention is not None:  # the second one of SD3 exists in some blocks only
            yield f"{block.name}.{name}", attention
