"""Checks that blocks can be skipped as their segments say: the model must not notice it where estimates are exact."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from fastcache_xdit.models.spec import Reader, Streams
from fastcache_xdit.models.streams import tensors_in
from fastcache_xdit.models.watch import signature_of
from fastcache_xdit.segments.segment import Block, Segment
from fastcache_xdit.undo import Undo

TOLERANCE = 1e-4  # relative; what is wrong is off by far more, and kernels need not repeat themselves to the last bit

_Added = tuple[torch.Tensor, torch.dtype]  # what a segment added to a stream, and the type of what it returned


def missed(segments: Sequence[Segment], forward: Callable[[], Any]) -> Iterator[torch.Tensor]:
    """Yield, for each way to skip segments, squared error and squared norm of the model's output, [2] float64.

    The blocks of skipped segments hand their input on, and the last one adds what the segment had added in full. So the
    output is the same unless something reads a block inside of a segment, or a segment hides what others need: what
    comes in wrong goes out wrong, also where the reader is skipped itself.

    Args:
        segments: of the model.
        forward: one call of it.
    """
    replays = [_Replay(segment) for segment in segments]
    whole = _flat(_around(replays, _Replay.noting, forward))
    for some in _ways(replays):
        difference = _flat(_around(some, _Replay.skipping, forward)) - whole
        yield torch.stack([difference.square().sum(), whole.square().sum()])


def _ways(replays: Sequence[_Replay]) -> Iterator[list[_Replay]]:
    """Yield all segments, and so many selections of them that each is once skipped while each other one is computed."""
    yield list(replays)
    for bit in range((len(replays) - 1).bit_length()):
        for chosen in (0, 1):
            yield [replay for number, replay in enumerate(replays) if number >> bit & 1 == chosen]


def _around(replays: Sequence[_Replay], what: Callable[..., Any], forward: Callable[[], Any]) -> Any:
    with Undo() as undo:
        for replay in replays:
            for block in replay.segment.blocks:
                read = block.spec.reader(signature_of(block.module))
                around = functools.partial(what, replay, block, read)
                undo.wrap(block.module, "__call__", around)
        return forward()


class _Replay:
    """One segment, with what it added to its streams, and the type of what it returned."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self._entered: Sequence[torch.Tensor | None] = ()
        self._added: Sequence[_Added | None] = ()

    def noting(self, block: Block, read: Reader, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Compute a block; behind the last one note what the segment added."""
        self._enter(block, read(args, kwargs))
        output = original(*args, **kwargs)
        if block is self.segment.blocks[-1]:
            pairs = zip(block.spec.unpack(output), self._entered, strict=True)
            self._added = [_added(after, before) for after, before in pairs]
        return output

    def skipping(self, block: Block, read: Reader, _: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Hand the input of a block on; the last one returns that of the segment with what was added."""
        streams = read(args, kwargs)
        self._enter(block, streams)
        if block is not self.segment.blocks[-1]:
            return block.spec.pack(streams)
        pairs = zip(self._entered, self._added, strict=True)
        return block.spec.pack(Streams(*(_with(before, added) for before, added in pairs)))

    def _enter(self, block: Block, streams: Streams) -> None:
        if block is self.segment.blocks[0]:
            self._entered = streams


def _added(output: torch.Tensor | None, entered: torch.Tensor | None) -> _Added | None:
    """Return what was added: of halves exactly, so that no rounding is taken for a miss."""
    if output is None or entered is None:
        return None
    return output.to(torch.promote_types(output.dtype, torch.float32)) - entered, output.dtype


def _with(entered: torch.Tensor | None, added: _Added | None) -> Any:
    return None if entered is None or added is None else (entered + added[0]).to(added[1])


def _flat(output: Any) -> torch.Tensor:
    """Return all numbers that a model returned, [N] float64."""
    fields = output if isinstance(output, torch.Tensor | dict | tuple | list) else vars(output)
    return torch.cat([part.double().flatten() for part in tensors_in(fields)])
