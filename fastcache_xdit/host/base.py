"""What the runtime needs of whoever runs the transformer; plain diffusers in one process needs no more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from torch import nn

from fastcache_xdit.approx.keys_values import KeysValuesForecast
from fastcache_xdit.clock import Clock, Patch
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.models.catalogue import spec_for
from fastcache_xdit.models.spec import ModelSpec
from fastcache_xdit.parallel.topology import Topology
from fastcache_xdit.runtime.session import Session
from fastcache_xdit.segments.segment import Block, Span, blocks_of, whole_key
from fastcache_xdit.undo import Undo


class Host:
    """One transformer where it runs, in one process that decides alone.

    Attributes:
        transformer: the module whose forward is one step; xDiT's wrapper where there is one.
        model: the diffusers transformer that holds the block lists.
        scheduler: announces requests through `set_timesteps`; None in a user's own loop.
        topology: this rank's place among those of its job.
        spans: per block list, where this rank's blocks are in the whole list; lists that are whole may be left out.
        whole_only: what is on that takes all tokens of a rank to be computed, in words; empty where nothing does.
        can_run_ahead: `run_ahead` is possible.
    """

    whole_only = ""
    can_run_ahead = False

    def __init__(self, transformer: nn.Module, model: nn.Module, scheduler: Any = None) -> None:
        self.transformer = transformer
        self.model = model
        self.scheduler = scheduler
        self.topology = Topology()
        self.spans: dict[str, Span] = {}

    @cached_property
    def spec(self) -> ModelSpec:
        """What is known of the model's class.

        Raises:
            UsageError: nothing is known of it.
        """
        return spec_for(self.model)

    @cached_property
    def blocks(self) -> list[Block]:
        """The blocks that this rank holds, in running order."""
        return blocks_of(self.model, self.spec, self.spans)

    @property
    def num_blocks(self) -> int:
        """Blocks of the whole model, those of other PipeFusion stages included."""
        return sum(span.total for span in self.spans.values()) or len(self.blocks)

    def whole_key(self, lead_blocks: int) -> str:
        """Return `Segment.key` of all blocks after the lead blocks, those of other PipeFusion stages included."""
        return whole_key(self.model, self.spec, self.spans, lead_blocks)

    def current_patch(self) -> Patch | None:
        """Return the PipeFusion patch of the current call, None where it is over the full local sequence."""
        return None

    def fix(self, undo: Undo) -> list[str]:
        """Repair upstream defects for as long as the undo log lives, and return their names."""
        return []

    def extend_keys_values(
        self, undo: Undo, clock: Clock, layers: Mapping[nn.Module, str], forecast: KeysValuesForecast | None
    ) -> Callable[[], int]:
        """Bring keys and values of skipped layers up to date, for as long as the undo log lives.

        Args:
            undo: the log.
            clock: tells the step.
            layers: the attention layers that may be skipped, and their names in a calibration.
            forecast: fitted weights, where there are any.
        Returns:
            A function that counts the bytes which that takes.
        """
        return lambda: 0

    def run_ahead(self, undo: Undo, session: Session, config: FastCacheConfig) -> None:
        """Let the last PipeFusion stage take skipped steps alone, for as long as the undo log lives."""
        raise NotImplementedError("only where can_run_ahead")
