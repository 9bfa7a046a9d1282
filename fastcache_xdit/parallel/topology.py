"""Parallel layouts: which ranks must agree, as arithmetic on ranks without process groups."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Topology:
    """The parallel degrees of a launch and the rank of this process.

    Tensor parallelism varies fastest over the ranks, followed by sequence parallelism, PipeFusion, CFG and data
    parallelism.
    """

    rank: int = 0
    tensor_parallel_degree: int = 1
    sequence_parallel_degree: int = 1
    pipefusion_parallel_degree: int = 1
    cfg_degree: int = 1
    data_parallel_degree: int = 1

    @property
    def world_size(self) -> int:
        """Number of ranks, the product of all degrees."""
        return (
            self.tensor_parallel_degree
            * self.sequence_parallel_degree
            * self.pipefusion_parallel_degree
            * self.cfg_degree
            * self.data_parallel_degree
        )

    @property
    def replica_size(self) -> int:
        """Number of ranks that work on one request."""
        return self.world_size // self.data_parallel_degree

    @property
    def stage(self) -> int:
        """PipeFusion stage of this rank."""
        return self._coordinates(self.rank)[0]

    def agreeing_ranks(self, cfg_agreement: bool = True) -> tuple[int, ...]:
        """Return the ranks that must take the same decisions as this one, itself included.

        These are all ranks that meet in a collective inside a block (tensor and sequence parallel ranks of one stage
        and replica) and, with `cfg_agreement`, those of the other CFG branch, because guidance amplifies the error of a
        skip in one branch alone.
        """
        own = self._coordinates(self.rank)
        return tuple(rank for rank in range(self.world_size) if self._same_decision(own, rank, cfg_agreement))

    @property
    def shard(self) -> int:
        """Index of this rank's shard of the sequence."""
        return self.rank // self.tensor_parallel_degree % self.sequence_parallel_degree

    def sequence_ranks(self) -> tuple[int, ...]:
        """Return the ranks that hold the shards of this rank's sequence, in the order of the shards."""
        step = self.tensor_parallel_degree
        first = self.rank - step * self.shard
        return tuple(range(first, first + step * self.sequence_parallel_degree, step))

    def replica_ranks(self) -> tuple[int, ...]:
        """Return the ranks that work on the same request as this one, over all PipeFusion stages and CFG branches."""
        first = self.rank // self.replica_size * self.replica_size
        return tuple(range(first, first + self.replica_size))

    def branch_of(self, rank: int) -> int:
        """Return the CFG branch of a rank."""
        return self._coordinates(rank)[1]

    def stage_neighbour(self, offset: int) -> int:
        """Return the rank `offset` PipeFusion stages after this one, otherwise with the same coordinates, unwrapped."""
        return self.rank + offset * self.tensor_parallel_degree * self.sequence_parallel_degree

    def _same_decision(self, own: tuple[int, int, int], rank: int, cfg_agreement: bool) -> bool:
        stage, branch, replica = self._coordinates(rank)
        return (stage, replica) == (own[0], own[2]) and (cfg_agreement or branch == own[1])

    def _coordinates(self, rank: int) -> tuple[int, int, int]:
        """Return stage, CFG branch and replica of a rank; tensor and sequence parallel ranks always agree."""
        rest = rank // (self.tensor_parallel_degree * self.sequence_parallel_degree)
        stage, rest = rest % self.pipefusion_parallel_degree, rest // self.pipefusion_parallel_degree
        return stage, rest % self.cfg_degree, rest // self.cfg_degree
