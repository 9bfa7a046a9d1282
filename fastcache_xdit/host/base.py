"""The interface to whatever runs the transformer, as plain diffusers in one process needs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import nn

from fastcache_xdit.approx.keys_values import KeysValuesForecast
from fastcache_xdit.clock import Clock, Patch
from fastcache_xdit.models.catalogue import is_known, spec_for
from fastcache_xdit.models.spec import ModelSpec
from fastcache_xdit.parallel.topology import Topology
from fastcache_xdit.runtime.session import Session
from fastcache_xdit.segments.segment import Block, Span, blocks_of, whole_key
from fastcache_xdit.undo import Undo

Skips = Callable[[Sequence[float]], Sequence[bool]]


class Host:
    """A transformer in the process that runs it; the base class decides without other ranks.

    Attributes:
        transformer: the module whose forward is one step; under xDiT its wrapper.
        others: transformers that take its place in some of the steps, such as the second one of Wan 2.2.
        boundary: noise level, 0 to 1, below which they do; None without one.
        model: the diffusers transformer that holds the block lists.
        pipe: the pipeline; None for a transformer in a user's own loop.
        scheduler: announces requests through `set_timesteps`; None in a user's own loop.
        topology: the parallel layout and this rank.
        spans: by name of a block list, the part that this rank holds; complete lists may be left out.
        begin: index of the first timestep of the running request, where its pipeline does not tell its scheduler.
        step_arguments: numbers beyond timestep and latents that the running request gives the scheduler's steps, such
            as `eta`; known from its first step on.
        sigmas: noise level of each step, for a user's own loop without a scheduler; None where they are unknown.
        rules_out_partial: name of a feature in use that does not work with partial steps; empty if there is none.
        can_run_ahead: whether `run_ahead` is possible.
    """

    rules_out_partial = ""
    can_run_ahead = False

    def __init__(self, transformer: nn.Module, model: nn.Module, scheduler: Any = None) -> None:
        self.transformer = transformer
        self.others: tuple[nn.Module, ...] = ()
        self.boundary: float | None = None
        self.model = model
        self.pipe: Any = None
        self.scheduler = scheduler
        self.begin = 0
        self.step_arguments: dict[str, float] = {}
        self.sigmas: tuple[float, ...] | None = None
        self.topology = Topology()
        self.spans: dict[str, Span] = {}

    def describe(self, spec: ModelSpec) -> None:
        """Set the description of the model, where the catalogue has none."""
        self.spec = spec
        vars(self).pop("blocks", None)

    @cached_property
    def spec(self) -> ModelSpec:
        """The description of the model's class.

        Raises:
            UsageError: the class is not known, and nothing was derived.
        """
        return spec_for(self.model)

    @property
    def is_known(self) -> bool:
        """Whether the catalogue has the model's class."""
        return is_known(self.model)

    @cached_property
    def blocks(self) -> list[Block]:
        """The blocks that this rank holds, in running order."""
        return blocks_of(self.model, self.spec, self.spans)

    @property
    def transformers(self) -> tuple[nn.Module, ...]:
        """All transformers that are called."""
        return (self.transformer, *self.others)

    def switch(self, sigmas: Sequence[float]) -> int | None:
        """Return the first step that another transformer takes; None if there is none."""
        if self.boundary is None:
            return None
        return next((step for step, sigma in enumerate(sigmas) if step > 0 and sigma < self.boundary), None)

    @property
    def device(self) -> torch.device:
        """The device of this process, on which ranks exchange what they decide by."""
        return next(self.model.parameters()).device

    @property
    def num_blocks(self) -> int:
        """Number of blocks of the model over all PipeFusion stages."""
        return sum(span.total for span in self.spans.values()) or len(self.blocks)

    def whole_key(self, lead_blocks: int) -> str:
        """Return `Segment.key` of all blocks after the lead blocks, over all PipeFusion stages."""
        return whole_key(self.model, self.spec, self.spans, lead_blocks)

    def current_patch(self) -> Patch | None:
        """Return the PipeFusion patch of the current call; None for the full local sequence."""
        return None

    def fix(self, undo: Undo) -> list[str]:
        """Fix defects of the host for as long as the undo log is open, and return their names."""
        return []

    def extend_keys_values(
        self, undo: Undo, clock: Clock, layers: Mapping[nn.Module, str], forecast: KeysValuesForecast | None
    ) -> Callable[[], int]:
        """Update stored keys and values of skipped layers, for as long as the undo log is open.

        Args:
            undo: the log.
            clock: position of the current call.
            layers: the attention layers that may be skipped, with their names in a calibration.
            forecast: calibrated weights; None if there are none.
        Returns:
            A function that returns the bytes that this holds.
        """
        return lambda: 0

    def run_ahead(self, undo: Undo, session: Session, skips: Skips, first_block: Block | None) -> None:
        """Let the last PipeFusion stage run skipped steps alone, for as long as the undo log is open.

        Args:
            undo: the log.
            session: of the transformer.
            skips: returns for noise levels which steps are skipped.
            first_block: of this stage; None where the whole output is stood in for.
        """
        raise NotImplementedError("only where can_run_ahead")
