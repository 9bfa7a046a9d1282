"""Checks that blocks can be skipped as their segments say: the model must not notice it where estimates are exact."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from fastcache_xdit.models.spec import named
from fastcache_xdit.models.streams import tensors_in
from fastcache_xdit.models.watch import signature_of
from fastcache_xdit.segments.segment import Block, Segment
from fastcache_xdit.undo import Undo

TOLERANCE = 1e-4  # relative; what is wrong is off by far more, and kernels need not repeat themselves to the last bit


def missed(segments: Sequence[Segment], forward: Callable[[], Any]) -> Iterator[torch.Tensor]:
    """Yield, for each way to skip segments, squared error and squared norm of the model's output, [2] float64.

    The blocks of skipped segments hand their input on, and the last one returns what it had returned in full. So the
    output is the same unless something reads a block inside of a segment, or a segment hides what others need. All
    segments are skipped together, and every other one.

    Args:
        segments: of the model.
        forward: one call of it.
    """
    last = {segment.blocks[-1].name: segment.blocks[-1] for segment in segments}
    outputs: dict[str, Any] = {}
    whole = _flat(_with_hooks(last.values(), outputs, forward))
    skipped = [segments, segments[::2], segments[1::2]] if len(segments) > 1 else [segments]
    for some in skipped:
        with Undo() as undo:
            for block in (block for segment in some for block in segment.blocks):
                undo.wrap(block.module, "__call__", _skipping(block, outputs))
            difference = _flat(forward()) - whole
        yield torch.stack([difference.square().sum(), whole.square().sum()])


def _with_hooks(blocks: Any, outputs: dict[str, Any], forward: Callable[[], Any]) -> Any:
    with Undo() as hooks:
        for block in blocks:
            note = functools.partial(_note, outputs, block.name)
            hooks.callback(block.module.register_forward_hook(note).remove)
        return forward()


def _note(outputs: dict[str, Any], name: str, _: Any, __: Any, output: Any) -> None:
    outputs[name] = output


def _skipping(block: Block, outputs: dict[str, Any]) -> Callable[..., Any]:
    signature = signature_of(block.module)

    def call(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if block.name in outputs:
            return outputs[block.name]
        return block.spec.pack(block.spec.read(named(signature, args, kwargs)))

    return call


def _flat(output: Any) -> torch.Tensor:
    """Return all numbers that a model returned, [N] float64."""
    return torch.cat([part.double().flatten() for part in tensors_in(output)])
