"""The ranks of this job: who they are, and what they exchange outside of cache decisions.

Who this rank is must be known before anything is imported that takes seconds, so torch is where it is used.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from fastcache_xdit.errors import UsageError

if TYPE_CHECKING:
    import torch

RANK_DEFAULTS = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}

# torchrun answers before it starts its ranks, and torch would wait for it for half an hour
LAUNCHER_PATIENCE = timedelta(seconds=60)

# what gloo and NCCL say where a process at the other end has ended
ENDED = ("Connection closed by peer", "Connection reset by peer", "remote process exited")


def be_alone() -> None:
    """Set what torchrun sets in the environment, for a process that it did not start: one rank of one."""
    for name, value in RANK_DEFAULTS.items():
        os.environ.setdefault(name, value)


def check_launcher() -> None:
    """Raise UsageError where torchrun, at which its ranks meet, has ended before this rank came to it."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    from torch.distributed import DistError, TCPStore

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        TCPStore(address, port, is_master=False, timeout=LAUNCHER_PATIENCE)
    except DistError:
        raise UsageError(
            f"torchrun, which started this rank, does not answer at {address}:{port} any more: it has ended",
            "start it again",
        ) from None


def rank() -> int:
    """Return this process's rank as torchrun set it; 0 where torchrun did not start it."""
    return int(os.environ.get("RANK", 0))


def is_first_rank() -> bool:
    """Tell whether this process speaks for all; true without torchrun."""
    return rank() == 0


def is_first_here() -> bool:
    """Tell whether this is the first process that torchrun started on this machine, whatever replica it is of."""
    return int(os.environ.get("LOCAL_RANK", 0)) == 0


def is_last_rank() -> bool:
    """Tell whether this is the rank on which xDiT's runner saves what it made; true without torchrun."""
    return rank() == size() - 1


def size() -> int:
    """Return the number of ranks that torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))


def another_ended(error: BaseException) -> bool:
    """Tell whether a message between ranks failed because another one's process had ended."""
    return size() > 1 and any(words in str(error) for words in ENDED)


def gather_objects(value: Any) -> list[Any]:
    """Gather a value from each rank: all of them, in rank order, on the first rank, an empty list elsewhere."""
    if size() == 1:
        return [value]
    import torch.distributed
    from xfuser.core.distributed import get_world_group

    everyone: list[Any] | None = [None] * size() if rank() == 0 else None
    torch.distributed.gather_object(value, everyone, dst=0, group=get_world_group().cpu_group)
    return everyone or []


def all_gather_objects(value: Any) -> list[Any]:
    """Gather a value from each rank: all of them, in rank order, on every rank."""
    if size() == 1:
        return [value]
    import torch.distributed
    from xfuser.core.distributed import get_world_group

    everyone: list[Any] = [None] * size()
    torch.distributed.all_gather_object(everyone, value, group=get_world_group().cpu_group)
    return everyone


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Sum a CPU tensor over all ranks, in rank order, so that every rank holds the same bits."""
    import torch

    return torch.stack(all_gather_objects(tensor)).sum(dim=0) if size() > 1 else tensor


def gather_cfg_branches(states: torch.Tensor) -> torch.Tensor:
    """Put the branches of guidance together: [B, ...] -> [2B, ...], uncond then cond, under CFG parallelism.

    Without it, one rank holds both and gets `states` back as given.
    """
    if size() == 1:
        return states
    from xfuser.core.distributed import get_cfg_group

    return get_cfg_group().all_gather(states.contiguous())


def synchronize() -> None:
    """Finish this rank's work on the accelerator."""
    import torch

    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def barrier() -> None:
    """Finish this rank's work and wait until every rank has: around what is timed."""
    import torch.distributed

    synchronize()
    if size() > 1:
        torch.distributed.barrier()


def finish() -> None:
    """Leave the process groups in order, so that no rank warns about another."""
    import torch.distributed

    if torch.distributed.is_initialized():
        barrier()
        torch.distributed.destroy_process_group()
