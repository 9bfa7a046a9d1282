"""Agreement over torch process groups; no other module uses torch.distributed for decisions."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from fastcache_xdit.counters import Counters
from fastcache_xdit.parallel.arrival import arriving
from fastcache_xdit.parallel.consensus import add_by_branch, check_stamps
from fastcache_xdit.parallel.topology import Topology
from fastcache_xdit.runtime.followers import HEADER_LENGTH

HEADERS_KEPT = 256
_GROUPS: dict[tuple[int, tuple[int, ...], str | None], dist.ProcessGroup] = {}
_SENT: dict[dist.ProcessGroup, deque[tuple[Any, torch.Tensor]]] = {}


def group_of(ranks: Sequence[int], backend: str | None = None) -> dist.ProcessGroup:
    """Return the process group of these ranks; the members create it once per job.

    Groups are never destroyed: torch would give a new group of the same ranks the name of the old one, under which it
    still finds the addresses of closed connections.
    """
    key = (id(dist.group.WORLD), tuple(ranks), backend)
    if key not in _GROUPS:
        _GROUPS[key] = dist.new_group(list(ranks), backend=backend, use_local_synchronization=True)
    return _GROUPS[key]


def confirm_options(topology: Topology, stamp: int, may_learn: bool) -> None:
    """Compare the options of all ranks between hosts, before different ones can make a rank wait forever.

    Data-parallel replicas may have different ones, unless one of them may learn or use what was learnt, which all ranks
    do together.

    Raises:
        RankDivergenceError: the stamps differ; raised on all ranks of the request, or of all if one may learn.
    """
    values = torch.tensor([float(stamp), float(may_learn)], dtype=torch.float64)
    gathered = [torch.empty_like(values) for _ in range(topology.world_size)]
    dist.all_gather(gathered, values, group=group_of(range(topology.world_size), backend="gloo"))
    stamps, learners = torch.stack(gathered).T.tolist()
    ranks = range(topology.world_size) if any(learners) else topology.replica_ranks()
    place = "the start: they were enabled with different options"
    check_stamps([stamps[rank] for rank in ranks], ranks, place)


class GroupConsensus:
    """The `Consensus` of several ranks.

    Args:
        topology: the parallel layout.
        cfg_agreement: whether the CFG branches decide together.
        device: where messages without tensors of the model are sent from.
        counters: count the collectives.
    """

    def __init__(self, topology: Topology, cfg_agreement: bool, device: torch.device, counters: Counters) -> None:
        self.ranks = topology.agreeing_ranks(cfg_agreement)
        self.branches = [topology.branch_of(rank) for rank in self.ranks]
        self.group = group_of(self.ranks)
        self._runs_on_device = "cuda:nccl" in dist.get_backend_config(self.group)  # gloo lets the host wait instead
        self.topology = topology
        self.shard, self.shard_count = topology.shard, topology.sequence_parallel_degree
        self.device = device
        self.counters = counters

    def agree(self, sums: torch.Tensor, stamp: int, place: str) -> torch.Tensor:
        """Add up the sums of all ranks in one all-gather and one copy to the host."""
        return self._added(self._gather(self._message(sums, stamp)), sums.shape, place)

    def agree_later(self, sums: torch.Tensor, stamp: int, place: str) -> Callable[[], torch.Tensor]:
        """Begin the all-gather and, where the device itself can wait for it, the copy to the host."""
        message = self._message(sums, stamp)
        gathered, work = self._begin_gather(message)
        arrived = arriving(gathered, work.wait) if self._runs_on_device else lambda: (work.wait(), gathered.cpu())[1]
        return lambda: self._added(arrived(), sums.shape, place)

    def _message(self, sums: torch.Tensor, stamp: int) -> torch.Tensor:
        """Return stamp and sums, [1 + rows x K]; the stamp is filled in, as a copy would wait for the device."""
        self.device = sums.device  # with offloading, the model computes on another device than its weights are on
        return torch.cat([sums.new_full((1,), float(stamp)), sums.flatten()])

    def _added(self, gathered: torch.Tensor, shape: torch.Size, place: str) -> torch.Tensor:
        """Check the stamps of [ranks, K] on the host, and add up the sums."""
        check_stamps(gathered[:, 0].tolist(), self.ranks, place)
        return add_by_branch(gathered[:, 1:].reshape(len(self.ranks), *shape), self.branches)

    def confirm(self, stamp: int, place: str) -> None:
        """Compare the stamps of all ranks in one all-gather."""
        gathered = self._gather(torch.full((1,), float(stamp), dtype=torch.float64, device=self.device))
        check_stamps(gathered[:, 0].tolist(), self.ranks, place)

    def gather_shards(self, values: torch.Tensor, stamp: int, place: str) -> torch.Tensor:
        """Gather the shards in one all-gather; only the stamps are copied to the host."""
        message = torch.cat([values.new_full((1,), float(stamp), dtype=torch.float64), values.double().flatten()])
        gathered = self._all_gather(message)
        check_stamps(gathered[:, 0].tolist(), self.ranks, place)
        topology = self.topology
        degrees = (-1, topology.sequence_parallel_degree, topology.tensor_parallel_degree)
        return gathered[:, 1:].reshape(*degrees, *values.shape)[:, :, 0].amax(dim=0).to(values.dtype)

    def exchange(self, rows: torch.Tensor) -> torch.Tensor:
        """Gather a tensor of each shard, in the order of the shards."""
        self.counters.collectives += 1
        ranks = self.topology.sequence_ranks()
        gathered = rows.new_empty(len(ranks) * len(rows), *rows.shape[1:])
        dist.all_gather_into_tensor(gathered, rows.contiguous(), group=group_of(ranks))
        return gathered.view(len(ranks), *rows.shape)

    def _gather(self, values: torch.Tensor) -> torch.Tensor:
        return self._all_gather(values).cpu()

    def _all_gather(self, values: torch.Tensor) -> torch.Tensor:
        """[K] -> [ranks, K], on the device of the values."""
        gathered, work = self._begin_gather(values)
        work.wait()
        return gathered

    def _begin_gather(self, values: torch.Tensor) -> tuple[torch.Tensor, dist.Work]:
        """Begin an all-gather into [ranks, K]; `values` are kept until it has ended."""
        self.counters.collectives += 1
        gathered = values.new_empty(len(self.ranks) * values.numel())
        work = dist.all_gather_into_tensor(gathered, values, group=self.group, async_op=True)
        assert work is not None
        return gathered.view(len(self.ranks), -1), work


class StageRelay:
    """The `Relay` of PipeFusion stages: small messages between hosts (gloo), ahead of the activations."""

    def __init__(self, topology: Topology, counters: Counters) -> None:
        stage, num_stages = topology.stage, topology.pipefusion_parallel_degree
        self.is_first = stage == 0
        self.group = group_of([topology.stage_neighbour(other - stage) for other in range(num_stages)], backend="gloo")
        self._previous = topology.stage_neighbour(-1)
        self._next = topology.stage_neighbour(1) if stage + 1 < num_stages else None
        self._sent = _SENT.setdefault(self.group, deque())
        self._counters = counters

    def send(self, header: list[float]) -> None:
        """Send a header to the next stage without waiting for it.

        gloo needs the message and its handle until the message is read. That can be after the request has ended here
        and the cache is off; so they are stored with the group.
        """
        self._counters.headers += 1
        if self._next is None:
            return
        message = torch.tensor(header, dtype=torch.float64)
        self._sent.append((dist.isend(message, dst=self._next, group=self.group), message))
        if len(self._sent) > HEADERS_KEPT:
            self._sent.popleft()[0].wait()

    def receive(self) -> list[float]:
        """Wait for the next header of the previous stage, which sends it before its activations."""
        message = torch.empty(HEADER_LENGTH, dtype=torch.float64)
        dist.recv(message, src=self._previous, group=self.group)
        return message.tolist()
