"""Tells which arguments and outputs of a list's blocks are the streams that run through them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from fastcache_xdit.models.watch import BlockCall

MOST = 2  # streams: the image, and in joint models the text or another modality


class Unclear(Exception):
    """Why the blocks of a list cannot be skipped."""


def stream_arguments(group: Sequence[BlockCall], calls: Sequence[BlockCall]) -> list[str | None]:
    """Return, for each output of a list's blocks, the argument by which the next block takes it; None where it is None.

    Raises:
        Unclear: an output is no stream, or a block runs more than once.
    """
    if len({call.name for call in group}) < len(group):
        raise Unclear("its blocks run more than once")
    if filled := sorted({name for call in group for name in call.filled}):
        raise Unclear(f"its blocks write into {filled[0]}")
    if other := [type(part).__name__ for call in group for part in outputs_of(call.output) if not _may_be_stream(part)]:
        raise Unclear(f"its blocks return {other[0]}, and not tensors")
    flows = _flows(group[0].list_name, calls)
    found: list[str | None] = []
    for index in range(max(len(outputs_of(call.output)) for call in group)):
        values = [outputs_of(call.output)[index] for call in group if index < len(outputs_of(call.output))]
        if all(value is None for value in values):
            found.append(None)
            continue
        names = Counter({name: votes for (number, name), votes in flows.items() if number == index})
        candidates = [name for name, _ in names.most_common()] or _alike(group, index)
        free = [name for name in candidates if name not in found]
        if not free:
            raise Unclear(f"output {index + 1} of its blocks is none of what they take")
        found.append(free[0])
    if any(_resized(call, found) for call in group):
        raise Unclear("its blocks change the size of what runs through them")
    streams = [name for name in found if name]
    if not 0 < len(streams) <= MOST:
        raise Unclear(f"{len(streams)} streams run through it")
    return found


def _resized(call: BlockCall, takes: Sequence[str | None]) -> bool:
    pairs = [
        (call.arguments.get(name), part) for name, part in zip(takes, outputs_of(call.output), strict=False) if name
    ]
    return any(part is not None and not fits(value, part) for value, part in pairs)


def _flows(list_name: str, calls: Sequence[BlockCall]) -> Counter[tuple[int, str]]:
    """Count how often an output of a block of this list is an argument of the next one, by number and name."""
    flows: Counter[tuple[int, str]] = Counter()
    for call, following in zip(calls, calls[1:], strict=False):
        if call.list_name == following.list_name == list_name:
            for index, output in enumerate(outputs_of(call.output)):
                names = [name for name, value in following.arguments.items() if value is output is not None]
                flows.update((index, name) for name in names)
    return flows


def _alike(group: Sequence[BlockCall], index: int) -> list[str]:
    """Return arguments of the shape of an output that are not handed to all blocks alike."""
    output, arguments = outputs_of(group[0].output)[index], group[0].arguments
    handed = {
        name
        for name, value in arguments.items()
        if len(group) > 1 and all(call.arguments.get(name) is value for call in group)
    }
    return [name for name, value in arguments.items() if name not in handed and fits(value, output)]


def fits(value: Any, output: Any) -> bool:
    """Return whether an argument may be the stream that an output is: floating-point numbers of the same shape."""
    tensors = isinstance(value, torch.Tensor) and isinstance(output, torch.Tensor)
    return tensors and value.shape == output.shape and value.is_floating_point()


def _may_be_stream(part: Any) -> bool:
    return part is None or isinstance(part, torch.Tensor)


def outputs_of(output: Any) -> Sequence[Any]:
    """Return what a block returned as a sequence."""
    return output if isinstance(output, tuple | list) else (output,)


def tensors_in(output: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in what a model returned; a PipeFusion stage returns what the next one takes."""
    if isinstance(output, torch.Tensor):
        yield output
    for part in output.values() if isinstance(output, dict) else output if isinstance(output, tuple | list) else ():
        yield from tensors_in(part)
