"""Keys and values of PipeFusion patches that were skipped, extended to the step that attention expects them at."""

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

# (due step, newest and oldest known step) -> for keys and for values what the newest and the oldest rows count.
Weights = Callable[[int, int, int], Sequence[Sequence[float]]]

WRITERS = ("_naive_cache_update", "_sequence_parallel_cache_update")
Spans = list[tuple[int, int]]  # per patch, its rows of the stored keys and values, as (start, stop)


@dataclass
class Stored:
    """What xDiT's store of one attention layer does not know of itself.

    `steps` are, per patch, the steps of the stored rows and of the rows that they replaced, newest first; the latter
    are kept in `older`, of the stored tensor's shape.
    """

    older: torch.Tensor | None = None
    steps: list[list[int]] = field(default_factory=list)

    def replaced(self, before: torch.Tensor | None, step: int, patches: int) -> None:
        """Note that all rows are about to be replaced by those of a step over the full sequence."""
        self.older = before if self.steps else None
        self.steps = [[step, *patch[:1]] for patch in self.steps or [[] for _ in range(patches)]]

    def keep(self, before: torch.Tensor, step: int, patch: int, rows: tuple[int, int], dim: int) -> None:
        """Keep the rows of one patch, which are about to be replaced."""
        if self.older is None:
            self.older = torch.empty_like(before)
        start, length = rows[0], rows[1] - rows[0]
        self.older.narrow(dim, start, length).copy_(before.narrow(dim, start, length))
        self.steps[patch] = [step, *self.steps[patch][:1]]

    def extended(
        self, stored: torch.Tensor, step: int, patch: int, spans: Spans, dim: int, weights: Weights
    ) -> torch.Tensor:
        """Return `stored` as attention of `patch` expects it: patches before it at `step`, the others one step earlier.

        Rows that are older, because their blocks were skipped, are made of those of the last two computed steps. A copy
        where there are any: what was computed stays what later ones are made of.
        """
        assert self.older is not None
        due = [step - (other > patch) for other in range(len(spans))]
        late = [other for other, steps in enumerate(self.steps) if len(steps) == 2 and steps[0] < due[other]]
        extended = stored.clone() if late else stored
        for other in late:
            start, stop = spans[other]
            rows, older = (each.narrow(dim, start, stop - start) for each in (extended, self.older))
            parts = zip(
                rows.chunk(2, dim=-1), older.chunk(2, dim=-1), weights(due[other], *self.steps[other]), strict=True
            )
            for mine, before, (newest, oldest) in parts:
                mine.mul_(newest).add_(before, alpha=oldest)
        return extended


class PatchKeysValues:
    """Stands between the attention layers of blocks that may be skipped and xDiT's store of keys and values.

    PipeFusion attends to patches that are not computed yet by their keys and values of one step ago. After skipped
    steps they are older. The error that this makes would go into the residual of the computed step and with it into
    each skipped step that the residual stands for.

    Args:
        layers: the attention layers, and their names in a calibration.
        bounds: gives the first rows of the patches in the rank's own sequence, and its length.
        fitted: weights by name; a layer that it does not know, or without it, follows a straight line.
    """

    def __init__(
        self,
        clock: Clock,
        layers: Mapping[nn.Module, str],
        bounds: Callable[[], list[int]],
        fitted: KeysValuesForecast | None = None,
    ) -> None:
        self.clock = clock
        self.layers = layers
        self.bounds = bounds
        self.fitted = fitted
        self._stored: dict[Any, Stored] = {}
        self._request = 0

    def wrapped(self, write: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """Return one of xDiT's `WRITERS` that keeps what it replaces, and gives attention what it expects."""

        def update(manager: Any, new_kv: torch.Tensor, layer: Any, slice_dim: int = 1, layer_type: str = "attn") -> Any:
            tick, bounds = self.clock.now, self.bounds()
            if tick is None or layer not in self.layers or len(bounds) == 2:
                return write(manager, new_kv, layer, slice_dim, layer_type)
            record, before = self._record(layer), manager.cache[layer_type, layer].tensors[0]
            if tick.patch is None:
                record.replaced(before, tick.step, len(bounds) - 1)
                return write(manager, new_kv, layer, slice_dim, layer_type)
            spans = spans_of(before.shape[slice_dim], bounds)
            record.keep(before, tick.step, tick.patch, spans[tick.patch], slice_dim)
            stored = write(manager, new_kv, layer, slice_dim, layer_type)
            return record.extended(stored, tick.step, tick.patch, spans, slice_dim, self._weights(self.layers[layer]))

        return update

    def _weights(self, name: str) -> Weights:
        fitted, names = self.fitted, (f"{name} keys", f"{name} values")
        if fitted is None or not all(map(fitted.knows, names)):
            return _line
        return lambda due, *known: [fitted.weights(each, due, known) for each in names]

    def bytes_held(self) -> int:
        """Return the bytes of the rows that xDiT would have dropped."""
        kept = [record.older for record in self._stored.values() if record.older is not None]
        return sum(tensor.numel() * tensor.element_size() for tensor in kept)

    def clear(self) -> None:
        """Free them."""
        self._stored.clear()

    def _record(self, layer: Any) -> Stored:
        if self._request != self.clock.request:
            self._request = self.clock.request
            self.clear()
        return self._stored.setdefault(layer, Stored())


def _line(due: int, newest: int, oldest: int) -> list[tuple[float, float]]:
    slope = (due - newest) / (newest - oldest)
    return [(1 + slope, -slope)] * 2


def install(
    undo: Undo, clock: Clock, layers: Mapping[nn.Module, str], fitted: KeysValuesForecast | None = None
) -> Callable[[], int]:
    """Put `PatchKeysValues` for these attention layers before xDiT's store.

    Returns:
        A function that counts the bytes that it holds.
    """
    distributed = importlib.import_module("xfuser.core.distributed")
    manager = importlib.import_module("xfuser.core.cache_manager.cache_manager").CacheManager
    bounds = lambda: distributed.get_runtime_state().pp_patches_token_start_idx_local  # noqa: E731
    extended = PatchKeysValues(clock, layers, bounds, fitted)
    undo.callback(extended.clear)
    for name in WRITERS:
        undo.set(manager, name, extended.wrapped(getattr(manager, name)))
    return extended.bytes_held


def spans_of(tokens: int, bounds: list[int]) -> Spans:
    """Each patch's rows of `tokens` stored ones: the rank's own, or under Ulysses also those of its peers.

    `bounds` are the first rows of the patches in the rank's own sequence, and its length.
    """
    peers = tokens // bounds[-1]
    return [(peers * start, peers * stop) for start, stop in zip(bounds, bounds[1:], strict=False)]
