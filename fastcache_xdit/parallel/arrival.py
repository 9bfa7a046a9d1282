"""Numbers on their way from the device to the host, which goes on meanwhile."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch


def arriving(values: torch.Tensor, finish: Callable[[], object] = lambda: None) -> Callable[[], torch.Tensor]:
    """Begin to copy numbers to the CPU; what is returned gives them there, and waits if they have not arrived.

    On CUDA the copy has a stream of its own, so that neither the host nor what the device computes next waits for it.

    Args:
        values: of any device; nobody may write into them afterwards.
        finish: makes the current stream, or the host, wait until something else has written them.
    """
    if not values.is_cuda:
        return lambda: (finish(), values.cpu())[1]
    stream, host = _side_stream(values.device), torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    stream.wait_stream(torch.cuda.current_stream(values.device))
    with torch.cuda.stream(stream):
        finish()
        host.copy_(values, non_blocking=True)
        arrived = stream.record_event()
    values.record_stream(stream)
    return lambda: (arrived.synchronize(), host)[1]


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
