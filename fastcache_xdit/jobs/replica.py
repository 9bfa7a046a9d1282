"""One loaded model on one or more ranks, which turns batches of items into PNG and mp4 files."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.counters import Counters
from fastcache_xdit.errors import ReplicaError, UsageError
from fastcache_xdit.handle import Handle
from fastcache_xdit.host.find import host_of
from fastcache_xdit.host.identity import identity
from fastcache_xdit.host.xdit import engine, world
from fastcache_xdit.host.xdit.board import Board
from fastcache_xdit.host.xdit.loading import XditOptions, with_values
from fastcache_xdit.host.xdit.positions import Positions
from fastcache_xdit.jobs.inputs import call_files
from fastcache_xdit.jobs.item import Figures, Item, ItemOutcome
from fastcache_xdit.jobs.limits import too_long
from fastcache_xdit.jobs.outcomes import outcomes
from fastcache_xdit.jobs.recipe import Recipe, printable
from fastcache_xdit.jobs.recording import Nowhere, Recording, in_full, pooled_as, unlimited
from fastcache_xdit.learning.circumstances import difference
from fastcache_xdit.plugin import enable, fastcache
from fastcache_xdit.telling import quiet

PATIENCE = 60.0  # seconds in which all ranks must have met an error, for it to be the item's and not a rank's


class Replica:
    """The model of a job, loaded once, after `join`; every rank of the replica makes one and calls it alike.

    Args:
        recipe: of the job.
        xdit: xDiT's options, with the layout inside this replica; replicas are not counted.
        folder: of the job, where items have files.
    Raises:
        UsageError: a model that xDiT or the cache does not know, or a config that does not fit it.
    """

    def __init__(self, recipe: Recipe, xdit: XditOptions, folder: Path | None = None) -> None:
        alone = with_values(xdit, data_parallel_degree=1)
        self._engine = engine.Engine(recipe.model, alone, recipe.dtype, recipe.fps, recipe.pipeline)
        self._folder = folder or Path()
        self._engine.pipe.set_progress_bar_config(disable=True)
        self._config, self.learns = recipe.config, recipe.learns
        self._calibration: Calibration | None = None
        self._recording: Recording | None = None
        self._call = recipe.call
        self._positions = Positions(self._engine.pipe.transformer)
        if self._config:  # what does not fit is said now, not of every item; one that learns does not know its plan yet
            self._try(None, tells=not self.learns)
        self._traced = False
        self._stages = xdit.pipefusion_parallel_degree
        self._spent: str | None = None
        self._board, self._batches = Board(), 0
        self._patience = min(PATIENCE, recipe.lease)

    @property
    def pipe(self) -> Any:
        """The loaded pipeline."""
        return self._engine.pipe

    def identity(self) -> dict[str, Any]:
        """Return the identity of the model, as this rank sees it; see `approx.identity`."""
        return identity(host_of(self._engine.pipe))

    def use(self, calibration: Calibration, tells: bool) -> None:
        """Plan all batches from now on by what was learnt, and say so if it `tells`.

        Raises:
            UsageError: it is of another model.
        """
        self._try(calibration, tells)
        self._calibration = calibration

    def _try(self, calibration: Calibration | None, tells: bool) -> None:
        """Turn the cache on and off; of the replicas of a launch, the first one says what it is going to do."""
        assert self._config
        with contextlib.nullcontext() if tells and world.is_first_here() else quiet():
            enable(self._engine.pipe, self._config, calibration=calibration, home=Nowhere()).disable()

    @contextlib.contextmanager
    def recording(self) -> Iterator[Recording]:
        """Compute the batches inside the with block in full, and record them under one handle."""
        assert self._config
        with quiet(), fastcache(self._engine.pipe, unlimited(self._config), home=Nowhere()) as handle:
            self._recording = Recording(handle, self._config.learn, self.identity(), self._positions.restore)
            try:
                yield self._recording
            finally:
                self._recording = None

    def generate(self, items: Sequence[Item]) -> tuple[list[ItemOutcome], Figures]:
        """Generate all items of one batch; outcomes are complete on the first rank only.

        Raises:
            ReplicaError: an error that not all ranks met; or the last batch's, which left messages between stages. The
                replica must be loaded anew.
        """
        if self._spent:
            raise ReplicaError(self._spent)
        start = time.perf_counter()
        self._batches += 1
        reasons = {item.id: too_long(self._engine.pipe, item, self._call) for item in items}
        refused = [ItemOutcome(id, error=reason) for id, reason in reasons.items() if reason]
        outcomes, counters = self._made([item for item in items if not reasons[item.id]])
        parts = world.gather_objects((outcomes, counters))
        unique = {outcome.id: outcome for part, _ in parts for outcome in part}
        figures = _figures(time.perf_counter() - start, [counters for _, counters in parts if counters])
        return [*refused, *unique.values()], figures

    def _made(self, items: Sequence[Item]) -> tuple[list[ItemOutcome], Counters | None]:
        if not items:
            return [], None
        try:
            return self._images(items)
        except Exception as error:
            return self._failed(items, error), None

    def _images(self, items: Sequence[Item]) -> tuple[list[ItemOutcome], Counters | None]:
        batch = tuple(self._request(item) for item in items)
        call = self._call | _arguments(items[0]) | {"output_type": "pt"}
        self._positions.restore()  # each batch is generated as if it were the first one
        if self._config is None:
            return outcomes(self._engine.generate(batch, **call), self._engine.fps), None
        with quiet(), self._cache(items) as handle:
            pixels = self._engine.generate(batch, **call)
            counters = handle.report().counters
        assert counters.requests == 1, f"the cache saw {counters.requests} requests in one batch"
        return outcomes(pixels, self._engine.fps), counters

    def _request(self, item: Item) -> engine.Request:
        return engine.Request(item.id, item.prompt, item.seed or 0, call_files(item, self._folder))

    def _cache(self, items: Sequence[Item]) -> contextlib.AbstractContextManager[Handle]:
        """Turn the cache on anew for each batch, so that nothing is left of the last; in full for recorded items."""
        if self._recording:
            return contextlib.nullcontext(self._recording.begun())
        assert self._config
        config = in_full(self._config) if any(item.recorded for item in items) else self._config
        return fastcache(self._engine.pipe, config, calibration=self._known_for(items[0]), home=Nowhere())

    def _known_for(self, item: Item) -> Calibration | None:
        """Return what is known, of other models where what was learnt does not apply to a batch."""
        known = self._calibration
        if known is None or not difference(known, _arguments(item), known.identity["adapters"]):
            return known
        return pooled_as(known.identity)

    def _failed(self, items: Sequence[Item], error: Exception) -> list[ItemOutcome]:
        """Fail the batch if the error is its own, which all ranks met."""
        if not isinstance(error, UsageError) and not self._traced:  # a bug: the first one is shown whole
            self._traced = True
            traceback.print_exception(error)
        reason = printable(f"{type(error).__name__}: {error}")
        if not self._board.all_met(self._batches, self._patience):
            raise ReplicaError(f"rank {world.rank()}: {reason}") from error
        if self._stages > 1 and not isinstance(error, ValueError):  # those come before any message between stages
            self._spent = f"messages between stages may be left from {reason}"
        return [ItemOutcome(item.id, error=reason) for item in items]


def _arguments(item: Item) -> dict[str, Any]:
    """A pipeline call's arguments that all items of a batch share."""
    return {
        "width": item.width,
        "height": item.height,
        "num_inference_steps": item.steps,
        "guidance_scale": item.guidance,
        "negative_prompt": item.negative_prompt,
        **{name: given for name in ("strength", "num_frames") if (given := getattr(item, name)) is not None},
    }


def _figures(seconds: float, ranks: Sequence[Counters]) -> Figures:
    if not ranks:
        return Figures(seconds)
    total = Counters()
    for counters in ranks:
        total.add(counters)
    return Figures(seconds, total.computed.total(), total.approximated.total(), total.compute_ratio())
