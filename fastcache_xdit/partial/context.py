"""Keys and values of static tokens, so that the tokens that are computed attend to the whole picture."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from fastcache_xdit.approx.keys_values import KeysValuesForecast
from fastcache_xdit.clock import Tick
from fastcache_xdit.partial.balance import Kept

Known = list[tuple[int, torch.Tensor]]  # (step, rows), newest first


class Context:
    """Stands behind the projections to keys and values of every attention layer whose blocks may be computed in part.

    Whole steps leave their rows here; partial steps put theirs in place, and leave them here too, or with a forecast
    among what it makes of the last whole steps. What follows, whether rotary embeddings, exchanges between ranks or
    xDiT's own store, sees as many keys and values as ever.
    """

    def __init__(self, forecast: KeysValuesForecast | None = None) -> None:
        self.forecast = forecast
        self._stored: dict[tuple[str, int | None, str], Known] = {}
        self._now: tuple[Tick, Kept | None] | None = None

    def enter(self, tick: Tick, kept: Kept | None) -> None:
        """The blocks are about to be computed, whole or for the `kept` tokens."""
        self._now = tick, kept

    def leave(self) -> None:
        """The blocks are done."""
        self._now = None

    def clear(self) -> None:
        """Forget all rows."""
        self._now = None
        self._stored.clear()

    def bytes_held(self) -> int:
        """Bytes of the rows; those of patches are extra to those of the full sequence that came before."""
        return sum(rows.numel() * rows.element_size() for known in self._stored.values() for _, rows in known)

    def wrapped(self, name: str, project: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """What takes the place of the forward of the projection `name`."""

        def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
            fresh = project(*args, **kwargs)
            return fresh if self._now is None else self._whole(name, fresh, *self._now)

        return forward

    def rotating(self, rotate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """What takes the place of `apply_rotary_emb`: queries of kept tokens are turned by their rows of the tables."""

        @functools.wraps(rotate)
        def rotated(x: torch.Tensor, tables: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
            kept = self._now and self._now[1]
            if kept is None or kwargs.get("sequence_dim") != 1 or x.shape[1] == len(tables[0]):
                return rotate(x, tables, *args, **kwargs)
            mine = tuple(_rows_of(kept, table, x.shape[1]).flatten(0, 1) for table in tables)
            return rotate(x.flatten(0, 1)[None], mine, *args, **kwargs).view_as(x)

        return rotated

    def _whole(self, name: str, fresh: torch.Tensor, tick: Tick, kept: Kept | None) -> torch.Tensor:
        known = self._known(name, tick)
        if kept is None:
            known.insert(0, (tick.step, fresh))
            del known[self.forecast.references if self.forecast else 1 :]
            return fresh
        if self.forecast:
            return _update(kept, fresh, self.forecast.rows(name, tick.step, known))
        rows = _update(kept, fresh, known[0][1])
        known[0] = tick.step, rows
        return rows

    def _known(self, name: str, tick: Tick) -> Known:
        """The rows of this branch and patch; a patch starts from its rows of the full sequence."""
        key = (tick.branch, tick.patch, name)
        if key not in self._stored:
            whole = self._stored.get((tick.branch, None, name), []) if tick.rows else []
            self._stored[key] = [(step, rows[:, slice(*tick.rows)]) for step, rows in whole] if tick.rows else []
        return self._stored[key]


def _rows_of(kept: Kept, table: torch.Tensor, count: int) -> torch.Tensor:
    """[M + N, d] -> [B, count, d]: the rows of M text tokens, and those of the kept image tokens."""
    text = count - kept.count
    found = kept.look_up(table[text:])
    return torch.cat([table[:text].expand(len(found), -1, -1), found], dim=1)


def _update(kept: Kept, fresh: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """`last` [B, M + N, D] with fresh rows [B, M + K, D]: M text rows, which are always computed, come first."""
    text = fresh.shape[1] - kept.count
    if text == 0:
        return kept.put(fresh, last)
    return torch.cat([fresh[:, :text], kept.put(fresh[:, text:], last[:, text:])], dim=1)
