"""Standing in for the whole output where the states of blocks would take too much memory (`memory_budget`)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from fastcache_xdit.runtime.driver import Driver
from fastcache_xdit.runtime.output import OutputDriver
from fastcache_xdit.segments.state import SegmentState, WeighedState

logger = logging.getLogger(__name__)


@dataclass
class MemoryChoice:
    """Chooses what is stood in for, after one request that is computed in full to see how large the states are.

    Args:
        blocks: skips blocks.
        output: skips the whole transformer.
        limit: bytes that the states of blocks may take on a rank.
        largest: returns the largest of all ranks' numbers, as all must choose alike; every rank must call it.
    """

    blocks: Driver
    output: OutputDriver
    limit: int
    largest: Callable[[int], int]
    _requests: int = 0
    _too_large: bool = False

    def driver(self) -> Driver | OutputDriver:
        """Return what runs the request that begins."""
        self._requests += 1
        if self._requests == 1:
            self.blocks.new_state = WeighedState
            return self.blocks
        if self._requests == 2:
            states = [state for state in self.blocks.states.values() if isinstance(state, WeighedState)]
            needed, self.blocks.new_state = self.largest(sum(state.needed for state in states)), SegmentState
            self._too_large = needed > self.limit
            if self._too_large:
                logger.warning(
                    "fastcache: what is kept of the blocks would take %.1f GB, memory_budget is %.1f GB: standing in "
                    "for the output of the transformer instead",
                    needed / 1e9,
                    self.limit / 1e9,
                )
        return self.output if self._too_large else self.blocks
