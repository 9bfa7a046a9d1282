"""Data-parallel replicas that work at their own pace: to xDiT each is a world of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta

import torch.distributed

from fastcache_xdit.errors import UsageError
from fastcache_xdit.host.xdit import world


def check_machines(replicas: int, environment: Mapping[str, str]) -> None:
    """Raise UsageError where replicas that torchrun started on several machines would share one job store."""
    machines = int(environment.get("GROUP_WORLD_SIZE", 1))
    if replicas > 1 and machines > 1:
        raise UsageError(
            f"{replicas} replicas on {machines} machines cannot share the job's files, which one machine must hold",
            "use batch run --ray, or one replica over all machines (data_parallel_degree=1)",
        )


def join(replicas: int) -> int:
    """Start this process's replica of `replicas` and return its number, from 0.

    Consecutive ranks form a replica. Afterwards RANK and WORLD_SIZE count within it, for this package and for xDiT
    alike; LOCAL_RANK, which names the device, stays.
    """
    from xfuser import envs
    from xfuser.core.distributed import init_distributed_environment

    rank, size = world.rank(), world.size() // replicas
    store = _store(replicas) if size > 1 else torch.distributed.HashStore()
    os.environ.update(RANK=str(rank % size), WORLD_SIZE=str(size))
    os.environ.setdefault("LOCAL_RANK", "0")
    backend = envs.get_torch_distributed_backend()
    torch.distributed.init_process_group(backend, store=store, rank=rank % size, world_size=size)
    init_distributed_environment()
    return rank // size


def meet(seconds: float) -> bool:
    """Wait for all ranks of the replica, at most `seconds`; return whether all of them came."""
    from xfuser.core.distributed import get_world_group

    try:
        torch.distributed.monitored_barrier(get_world_group().cpu_group, timeout=timedelta(seconds=seconds))
    except RuntimeError:
        return False
    return True


def _store(replicas: int) -> torch.distributed.Store:
    """Where the ranks of this replica find each other: torchrun's store, under the replica's name."""
    store, rank, world_size = next(torch.distributed.rendezvous("env://"))
    return torch.distributed.PrefixStore(f"replica-{rank // (world_size // replicas)}", store)
