"""Keys and values of static tokens, so that computed tokens attend to all tokens."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import torch

from fastcache_xdit.approx.keys_values import KeysValuesForecast
from fastcache_xdit.clock import Tick
from fastcache_xdit.partial.balance import KeptTokens

RowsByStep = list[tuple[int, torch.Tensor]]  # (step, rows [B, N, D]), newest first


class StaticKeysValues:
    """Completes the keys and values of partial steps with those of the static tokens.

    It wraps the projections to keys and values of each attention layer. Full steps store their rows; partial steps put
    the rows of the computed tokens among the stored ones, or among an extrapolation of them. What follows (rotary
    embeddings, exchanges between ranks, xDiT's own store) therefore always receives the rows of all tokens.

    Args:
        forecast: extrapolates rows from several full steps; None to reuse those last computed.
    """

    def __init__(self, forecast: KeysValuesForecast | None = None) -> None:
        self.forecast = forecast
        self._stored: dict[tuple[str, int | None, str], RowsByStep] = {}
        self._local = threading.local()  # other threads may run the same layers for a request that is not cached

    @property
    def _now(self) -> tuple[Tick, KeptTokens | None] | None:
        return getattr(self._local, "now", None)

    def enter(self, tick: Tick, kept: KeptTokens | None) -> None:
        """Begin a step of the blocks, on all tokens or on the `kept` ones."""
        self._local.now = tick, kept

    def leave(self) -> None:
        """End the step."""
        self._local.now = None

    def clear(self) -> None:
        """Forget all stored rows."""
        self._local.now = None
        self._stored.clear()

    def bytes_held(self) -> int:
        """Return the bytes of the stored rows; those of patches come on top of those of the full sequence."""
        return sum(rows.numel() * rows.element_size() for stored in self._stored.values() for _, rows in stored)

    def completing(self, name: str, project: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Call `project`, the projection `name`, and complete its rows inside of a step."""
        fresh = project(*args, **kwargs)
        return fresh if self._now is None else self._completed(name, fresh, *self._now)

    def rotating(self, rotate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """Return a replacement of `apply_rotary_emb` that rotates kept tokens by their own rows of the tables."""

        @functools.wraps(rotate)
        def rotated(x: torch.Tensor, tables: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
            kept = self._now and self._now[1]
            if kept is None or kwargs.get("sequence_dim") != 1 or x.shape[1] == len(tables[0]):
                return rotate(x, tables, *args, **kwargs)
            kept_tables = tuple(_rows_of(kept, table, x.shape[1]).flatten(0, 1) for table in tables)
            return rotate(x.flatten(0, 1)[None], kept_tables, *args, **kwargs).view_as(x)

        return rotated

    def _completed(self, name: str, fresh: torch.Tensor, tick: Tick, kept: KeptTokens | None) -> torch.Tensor:
        stored = self._stored_rows(name, tick)
        if kept is None:
            stored.insert(0, (tick.step, fresh))
            del stored[self.forecast.references if self.forecast else 1 :]
            return fresh
        if self.forecast:
            return _update(kept, fresh, self.forecast.rows(name, tick.step, stored))
        rows = _update(kept, fresh, stored[0][1])
        stored[0] = tick.step, rows
        return rows

    def _stored_rows(self, name: str, tick: Tick) -> RowsByStep:
        """Return the rows of this branch and patch; a patch starts from its rows of the full sequence."""
        key = (tick.branch, tick.patch, name)
        if key not in self._stored:
            full = self._stored.get((tick.branch, None, name), []) if tick.rows else []
            self._stored[key] = [(step, rows[:, slice(*tick.rows)]) for step, rows in full] if tick.rows else []
        return self._stored[key]


def _rows_of(kept: KeptTokens, table: torch.Tensor, count: int) -> torch.Tensor:
    """[M + N, d] -> [B, count, d]: the rows of M text tokens and of the kept image tokens."""
    text = count - kept.count
    image_rows = kept.look_up(table[text:])
    return torch.cat([table[:text].expand(len(image_rows), -1, -1), image_rows], dim=1)


def _update(kept: KeptTokens, fresh: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """Return `last` [B, M + N, D] with fresh rows [B, M + K, D] in place; the M text rows are always computed."""
    text = fresh.shape[1] - kept.count
    if text == 0:
        return kept.put(fresh, last)
    return torch.cat([fresh[:, :text], kept.put(fresh[:, text:], last[:, text:])], dim=1)
