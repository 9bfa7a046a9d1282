"""Who must agree: pure arithmetic on ranks, no process group."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Topology:
    """Degrees of one launch and this process's rank; ranks count tensor parallel fastest, then sp, pp, cfg, dp."""

    rank: int = 0
    tensor_parallel_degree: int = 1
    sequence_parallel_degree: int = 1
    pipefusion_parallel_degree: int = 1
    cfg_degree: int = 1
    data_parallel_degree: int = 1

    @property
    def world_size(self) -> int:
        """Ranks of all degrees together."""
        return (
            self.tensor_parallel_degree
            * self.sequence_parallel_degree
            * self.pipefusion_parallel_degree
            * self.cfg_degree
            * self.data_parallel_degree
        )

    @property
    def stage(self) -> int:
        """PipeFusion stage of this rank."""
        return self._coordinates(self.rank)[0]

    def agreeing_ranks(self, cfg_agreement: bool = True) -> tuple[int, ...]:
        """Ranks that must take the same decisions as this one.

        All that meet in a collective inside a block (tensor and sequence parallel ranks of one stage and replica), and
        with `cfg_agreement` the CFG branches, because guidance amplifies a skip in one branch alone.
        """
        own = self._coordinates(self.rank)
        return tuple(rank for rank in range(self.world_size) if self._same_decision(own, rank, cfg_agreement))

    @property
    def shard(self) -> int:
        """Place of this rank's tokens among the shards of its sequence."""
        return self.rank // self.tensor_parallel_degree % self.sequence_parallel_degree

    def sequence_ranks(self) -> tuple[int, ...]:
        """Ranks that hold the other shards of this rank's sequence, and itself, in the order of the shards."""
        step = self.tensor_parallel_degree
        first = self.rank - step * self.shard
        return tuple(range(first, first + step * self.sequence_parallel_degree, step))

    def replica_ranks(self) -> tuple[int, ...]:
        """Ranks that work on the same request as this one, all pipeline stages and CFG branches included."""
        size = self.world_size // self.data_parallel_degree
        first = self.rank // size * size
        return tuple(range(first, first + size))

    def branch_of(self, rank: int) -> int:
        """CFG coordinate of a rank."""
        return self._coordinates(rank)[1]

    def stage_neighbour(self, offset: int) -> int:
        """The rank with this one's coordinates, `offset` PipeFusion stages further (no wrap-around)."""
        return self.rank + offset * self.tensor_parallel_degree * self.sequence_parallel_degree

    def _same_decision(self, own: tuple[int, int, int], rank: int, cfg_agreement: bool) -> bool:
        stage, branch, replica = self._coordinates(rank)
        return (stage, replica) == (own[0], own[2]) and (cfg_agreement or branch == own[1])

    def _coordinates(self, rank: int) -> tuple[int, int, int]:
        """(pp, cfg, dp) of a rank; tp and sp never separate agreeing ranks."""
        rest = rank // (self.tensor_parallel_degree * self.sequence_parallel_degree)
        stage, rest = rest % self.pipefusion_parallel_degree, rest // self.pipefusion_parallel_degree
        return stage, rest % self.cfg_degree, rest // self.cfg_degree
