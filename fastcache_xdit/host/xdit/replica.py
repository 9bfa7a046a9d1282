"""Data-parallel replicas that work at their own pace: to xDiT each is a world of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta

import torch.distributed

from fastcache_xdit.errors import ReplicaError, UsageError
from fastcache_xdit.host.xdit import world

STARTING = 300.0  # seconds that a rank waits for torchrun, and one which was started again for the others


def check_machines(replicas: int, environment: Mapping[str, str]) -> None:
    """Raise UsageError where replicas that torchrun started on several machines would share one job store."""
    machines = int(environment.get("GROUP_WORLD_SIZE", 1))
    if replicas > 1 and machines > 1:
        raise UsageError(
            f"{replicas} replicas on {machines} machines cannot share the job's files, which one machine must hold",
            "use batch run --ray, or one replica over all machines (data_parallel_degree=1)",
        )


def join(replicas: int, start: int = 0) -> int:
    """Start this process's replica of `replicas` and return its number, from 0.

    Consecutive ranks form a replica. Afterwards RANK and WORLD_SIZE count within it, for this package and for xDiT
    alike; LOCAL_RANK, which names the device, stays. `start` counts how often the replica was started again; all of its
    ranks must come in `STARTING` seconds then.

    Raises:
        ReplicaError: some did not come.
    """
    from xfuser import envs
    from xfuser.core.distributed import init_distributed_environment

    rank, size = world.rank(), world.size() // replicas
    store = _store(replicas, start) if size > 1 else torch.distributed.HashStore()
    os.environ.update(RANK=str(rank % size), WORLD_SIZE=str(size))
    os.environ.setdefault("LOCAL_RANK", "0")
    if start:
        _meet(store, rank % size, size)
    backend = envs.get_torch_distributed_backend()
    torch.distributed.init_process_group(backend, store=store, rank=rank % size, world_size=size)
    init_distributed_environment()
    return rank // size


def _meet(store: torch.distributed.Store, rank: int, size: int) -> None:
    store.set(f"here/{rank}", "")
    try:
        store.wait([f"here/{each}" for each in range(size)], timedelta(seconds=STARTING))
    except RuntimeError:
        missing = [str(each) for each in range(size) if not store.check([f"here/{each}"])]
        raise ReplicaError(f"rank {', '.join(missing)} did not start again within {STARTING:.0f} s") from None


def _store(replicas: int, start: int) -> torch.distributed.Store:
    """Where the ranks of this replica find each other: torchrun's store, under the name of replica and start."""
    default, patience = torch.distributed.constants.default_pg_timeout, timedelta(seconds=STARTING)
    store, rank, world_size = next(torch.distributed.rendezvous("env://", timeout=patience))
    store.set_timeout(default)  # of what ranks will say to each other
    return torch.distributed.PrefixStore(f"replica-{rank // (world_size // replicas)}-{start}", store)
