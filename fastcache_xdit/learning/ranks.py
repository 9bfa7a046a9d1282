"""What the ranks that serve a request exchange while they learn; every rank must call it at the same places."""

from __future__ import annotations

from typing import Any

import torch

from fastcache_xdit.host.xdit import world
from fastcache_xdit.parallel.topology import Topology


class Ranks:
    """The ranks of one layout; one process alone exchanges nothing."""

    def __init__(self, topology: Topology) -> None:
        self.is_alone = topology.world_size == 1
        self.is_first = topology.rank == 0

    def total(self, values: torch.Tensor | None) -> torch.Tensor:
        """Add a tensor over all ranks in rank order, to the same bits everywhere; None adds nothing."""
        there = [part for part in self.all(values) if part is not None]
        assert there, "no rank has seen the scheduler"
        return torch.stack(there).sum(dim=0)

    def all(self, value: Any) -> list[Any]:
        """Return all ranks' values on every rank."""
        return [value] if self.is_alone else world.all_gather_objects(value)

    def largest(self, value: int) -> int:
        """Return the largest of all ranks' values on every rank."""
        return max(self.all(value))

    def first(self, value: Any) -> Any:
        """Return the first rank's value on every rank."""
        return self.all(value if self.is_first else None)[0]
