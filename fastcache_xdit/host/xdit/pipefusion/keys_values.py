"""Keys and values of skipped PipeFusion patches, extrapolated to the step at which attention expects them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fastcache_xdit.approx.keys_values import KeysValuesForecast
from fastcache_xdit.clock import Clock
from fastcache_xdit.undo import Undo

# (due step, newest and oldest stored step) -> for keys and for values, the weights of the newest and the oldest rows.
Weights = Callable[[int, int, int], Sequence[Sequence[float]]]

WRITERS = ("_naive_cache_update", "_sequence_parallel_cache_update")
Spans = list[tuple[int, int]]  # per patch, its rows of the stored keys and values, as (start, stop)


@dataclass
class LayerHistory:
    """The history of xDiT's store of keys and values for one attention layer.

    Attributes:
        older: the rows that the stored ones replaced, in the shape of the stored tensor.
        steps: for each patch, the steps of the stored rows and of those in `older`, newest first.
    """

    older: torch.Tensor | None = None
    steps: list[list[int]] = field(default_factory=list)

    def replaced(self, before: torch.Tensor | None, step: int, patches: int) -> None:
        """Note that a step over the full sequence is about to replace all rows."""
        self.older = before if self.steps else None
        self.steps = [[step, *patch[:1]] for patch in self.steps or [[] for _ in range(patches)]]

    def keep(self, before: torch.Tensor, step: int, patch: int, rows: tuple[int, int], dim: int) -> None:
        """Keep the rows of one patch that are about to be replaced."""
        if self.older is None:
            self.older = torch.empty_like(before)
        start, length = rows[0], rows[1] - rows[0]
        self.older.narrow(dim, start, length).copy_(before.narrow(dim, start, length))
        self.steps[patch] = [step, *self.steps[patch][:1]]

    def extended(
        self, stored: torch.Tensor, step: int, patch: int, spans: Spans, dim: int, weights: Weights
    ) -> torch.Tensor:
        """Return `stored` as the attention of `patch` expects it: earlier patches at `step`, others one step before.

        Rows that are older, because their blocks were skipped, are extrapolated from the last two computed steps. This
        is done in a copy, because later extrapolations need the computed rows.
        """
        assert self.older is not None
        due = [step - (other > patch) for other in range(len(spans))]
        stale = [other for other, steps in enumerate(self.steps) if len(steps) == 2 and steps[0] < due[other]]
        extended = stored.clone() if stale else stored
        for other in stale:
            start, stop = spans[other]
            rows, older = (tensor.narrow(dim, start, stop - start) for tensor in (extended, self.older))
            parts = zip(
                rows.chunk(2, dim=-1), older.chunk(2, dim=-1), weights(due[other], *self.steps[other]), strict=True
            )
            for part, before, (newest, oldest) in parts:
                part.mul_(newest).add_(before, alpha=oldest)
        return extended


class PatchKeysValues:
    """Extrapolates the stored keys and values of blocks that may be skipped.

    PipeFusion attends to patches that are not computed yet through their keys and values of the previous step. After
    skipped steps these are older. The resulting error would enter the residual of the computed step, and with it every
    skipped step that reuses the residual.

    Args:
        clock: position of the current call.
        layers: the attention layers, with their names in a calibration.
        bounds: returns the first row of each patch in the rank's own sequence, and the length of the sequence.
        forecast: calibrated weights; without them, or for a layer that they lack, rows follow a straight line.
    """

    def __init__(
        self,
        clock: Clock,
        layers: Mapping[nn.Module, str],
        bounds: Callable[[], list[int]],
        forecast: KeysValuesForecast | None = None,
    ) -> None:
        self.clock = clock
        self.layers = layers
        self.bounds = bounds
        self.forecast = forecast
        self._histories: dict[Any, LayerHistory] = {}
        self._request = 0

    def wrapped(self, write: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """Return a wrapper of one of xDiT's `WRITERS` that keeps replaced rows and returns extrapolated ones."""

        def update(manager: Any, new_kv: torch.Tensor, layer: Any, slice_dim: int = 1, layer_type: str = "attn") -> Any:
            tick, bounds = self.clock.now, self.bounds()
            if tick is None or layer not in self.layers or len(bounds) == 2:
                return write(manager, new_kv, layer, slice_dim, layer_type)
            history, before = self._history(layer), manager.cache[layer_type, layer].tensors[0]
            if tick.patch is None:
                history.replaced(before, tick.step, len(bounds) - 1)
                return write(manager, new_kv, layer, slice_dim, layer_type)
            spans = spans_of(before.shape[slice_dim], bounds)
            history.keep(before, tick.step, tick.patch, spans[tick.patch], slice_dim)
            stored = write(manager, new_kv, layer, slice_dim, layer_type)
            return history.extended(stored, tick.step, tick.patch, spans, slice_dim, self._weights(self.layers[layer]))

        return update

    def _weights(self, name: str) -> Weights:
        forecast, layers = self.forecast, (f"{name} keys", f"{name} values")
        if forecast is None or not all(map(forecast.knows, layers)):
            return _line
        return lambda due, *computed: [forecast.weights(layer, due, computed) for layer in layers]

    def bytes_held(self) -> int:
        """Return the bytes of the replaced rows that are kept."""
        replaced = [history.older for history in self._histories.values() if history.older is not None]
        return sum(tensor.numel() * tensor.element_size() for tensor in replaced)

    def clear(self) -> None:
        """Free these rows."""
        self._histories.clear()

    def _history(self, layer: Any) -> LayerHistory:
        if self._request != self.clock.request:
            self._request = self.clock.request
            self.clear()
        return self._histories.setdefault(layer, LayerHistory())


def _line(due: int, newest: int, oldest: int) -> list[tuple[float, float]]:
    slope = (due - newest) / (newest - oldest)
    return [(1 + slope, -slope)] * 2


def install(
    undo: Undo, clock: Clock, layers: Mapping[nn.Module, str], forecast: KeysValuesForecast | None = None
) -> Callable[[], int]:
    """Wrap xDiT's store of keys and values in `PatchKeysValues`, for as long as the undo log is open.

    Args:
        undo: the log.
        clock: position of the current call.
        layers: the attention layers, with their names in a calibration.
        forecast: calibrated weights, if any.
    Returns:
        A function that returns the bytes held.
    """
    distributed = importlib.import_module("xfuser.core.distributed")
    manager = importlib.import_module("xfuser.core.cache_manager.cache_manager").CacheManager
    bounds = lambda: distributed.get_runtime_state().pp_patches_token_start_idx_local  # noqa: E731
    patches = PatchKeysValues(clock, layers, bounds, forecast)
    undo.callback(patches.clear)
    for name in WRITERS:
        undo.set(manager, name, patches.wrapped(getattr(manager, name)))
    return patches.bytes_held


def spans_of(tokens: int, bounds: list[int]) -> Spans:
    """Return the rows (start, stop) of each patch among the stored ones.

    Args:
        tokens: number of stored rows; under Ulysses they include those of the rank's peers.
        bounds: first row of each patch in the rank's own sequence, and the length of the sequence.
    """
    peers = tokens // bounds[-1]
    return [(peers * start, peers * stop) for start, stop in zip(bounds, bounds[1:], strict=False)]
