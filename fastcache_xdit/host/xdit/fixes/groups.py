"""A fix for sequence-parallel groups that ignore tensor parallelism."""

from __future__ import annotations

import importlib
from typing import Any

import torch.distributed as dist

from fastcache_xdit.host.group import group_of
from fastcache_xdit.undo import Undo


def follow_tensor_parallel(undo: Undo) -> bool:
    """Make the Ulysses and ring groups subdivide xDiT's own sequence groups (defect D4).

    xDiT numbers tensor-parallel ranks innermost, so two tensor and two sequence ranks share images as [0, 2] and
    [1, 3]. The library that makes the Ulysses and ring groups ignores tensor parallelism and pairs [0, 1] and
    [2, 3]; attention then exchanges heads between ranks that hold the same tokens.
    """
    state = importlib.import_module("xfuser.core.distributed.parallel_state")
    sequence, tensor = state.get_sp_group(), state.get_tp_group()
    if sequence.world_size == 1 or tensor.world_size == 1:
        return False
    ranks, degree = sequence.ranks, sequence.ulysses_world_size
    place = ranks.index(dist.get_rank())
    ulysses = group_of(ranks[place - place % degree :][:degree])
    ring = group_of(ranks[place % degree :: degree])
    _install(undo, sequence, ulysses, ring)
    return True


def _install(undo: Undo, sequence: Any, ulysses: Any, ring: Any) -> None:
    shared = importlib.import_module("yunchang.globals").PROCESS_GROUP
    undo.set(shared, "ULYSSES_PG", ulysses)
    undo.set(shared, "RING_PG", ring)
    undo.set(sequence, "ulysses_group", ulysses)
    undo.set(sequence, "ring_group", ring)
    undo.set(sequence, "ulysses_rank", dist.get_rank(ulysses))
    undo.set(sequence, "ring_rank", dist.get_rank(ring))
