"""Messages between PipeFusion stages on gloo, where a send completes only when the receiver reads it."""

from __future__ import annotations

import functools
import importlib
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed

SHAPE_TAG = 1  # separates messages with shapes from those with tensors
SHAPE_SLOTS = 8
SENDS_KEPT = 64  # far more than can be under way: one message per patch and stream


def patch_pipeline_group() -> None:
    """Replace the sends of xDiT's pipeline groups, of tensors and of shapes, for the rest of the process."""
    group = importlib.import_module("xfuser.core.distributed.group_coordinator").PipelineGroupCoordinator
    group._communicate_shapes = _exchange_shapes
    group._pipeline_isend = _send
    group._pipeline_isend_skip = _send_skip
    vars(torch.distributed).update(batch_isend_irecv=_to_oneself(torch.distributed.batch_isend_irecv))


def _to_oneself(original: Callable[[list], list]) -> Callable[[list], list]:
    """Copy messages that a rank sends to itself, as the only one of a group that exchanges rows; gloo refuses them."""

    @functools.wraps(original)
    def exchange(operations: list) -> list:
        if any(operation.peer != torch.distributed.get_rank() for operation in operations):
            return original(operations)
        sends, receives = operations[::2], operations[1::2]
        for send, receive in zip(sends, receives, strict=True):
            receive.tensor.copy_(send.tensor)
        return []

    return exchange


def _exchange_shapes(group, tensor_send_to_next=None, recv_prev=False) -> torch.Size:
    """Send a shape to the next stage without waiting for it: two stages that both wait for a send would deadlock."""
    if tensor_send_to_next is not None:
        shape = list(tensor_send_to_next.shape)
        message = torch.tensor([len(shape), *shape] + [0] * (SHAPE_SLOTS - 1 - len(shape)))
        _keep(group, message, group.next_rank, group.device_group, SHAPE_TAG)
    if not recv_prev:
        return torch.Size([0, 0, 0])
    message = torch.empty(SHAPE_SLOTS, dtype=torch.int64)
    torch.distributed.recv(message, src=group.prev_rank, group=group.device_group, tag=SHAPE_TAG)
    length, *shape = message.tolist()
    return torch.Size(shape[:length])


def _send(group, tensor: torch.Tensor):
    lane = group.device_groups[group.rank_in_group % 2] if group.world_size == 2 else group.device_group
    return _keep(group, tensor.clone(), group.next_rank, lane)


def _send_skip(group, tensor: torch.Tensor):
    return _keep(group, tensor.clone(), group.skip_rank, group.skip_device_group)


def _keep(group, tensor: torch.Tensor, target: int, lane, tag: int = 0):
    """Send without waiting, and keep the tensor and the handle: gloo drops a send whose handle is freed."""
    sent = _Sent(torch.distributed.isend(tensor, dst=target, group=lane, tag=tag), tensor)
    sends = group.__dict__.setdefault("_sends", deque())
    sends.append(sent)
    while len(sends) > SENDS_KEPT:
        sends.popleft().wait()
    return sent


class _Sent:
    """A send that can be waited for twice; with gloo's own handle a second wait never ends."""

    def __init__(self, work: Any, tensor: torch.Tensor):
        self.work = work
        self.tensor = tensor
        self.done = False

    def wait(self) -> None:
        if not self.done:
            self.work.wait()
            self.done = True
