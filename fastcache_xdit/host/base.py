"""What the runtime needs of whoever runs the transformer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import nn

from fastcache_xdit.approx.keys_values import Forecast
from fastcache_xdit.clock import Clock
from fastcache_xdit.parallel.topology import Topology
from fastcache_xdit.runtime.session import Session
from fastcache_xdit.undo import Undo


class PatchView(NamedTuple):
    """The PipeFusion patch of one call: its number, its rows of the local sequence, and whether it is the last."""

    number: int
    rows: tuple[int, int]
    is_last: bool


def _no_patch() -> PatchView | None:
    return None


def _no_fixes(undo: Undo) -> list[str]:
    return []


def _no_forecast(
    undo: Undo, clock: Clock, layers: Mapping[nn.Module, str], fitted: Forecast | None
) -> Callable[[], int]:
    return lambda: 0


@dataclass(frozen=True, kw_only=True)
class Host:
    """One transformer where it runs.

    Attributes:
        transformer: the module whose forward is one step; xDiT's wrapper where there is one.
        model: the diffusers transformer that holds the block lists.
        scheduler: announces requests through `set_timesteps`; None in a user's own loop.
        topology: None where a single process decides alone.
        patch: the PipeFusion patch of the current call, or None.
        offsets, lengths: per block list, first global index on this rank and length of the whole list.
        whole_only: what is on that takes all tokens of a rank to be computed, as words; empty where nothing does.
        fixes: repairs upstream defects for as long as the undo log lives and returns their names.
        forecast: extends the keys and values of skipped layers, given with their names, for as long as the undo log
            lives, by fitted weights where there are any; gives the function that counts the bytes which that takes.
        ahead: lets the last PipeFusion stage take skipped steps alone for as long as the undo log lives, given which of
            a number of steps are skipped; None where that is not possible.
    """

    transformer: nn.Module
    model: nn.Module
    scheduler: Any = None
    topology: Topology | None = None
    patch: Callable[[], PatchView | None] = _no_patch
    offsets: dict[str, int] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    whole_only: str = ""
    fixes: Callable[[Undo], list[str]] = _no_fixes
    forecast: Callable[[Undo, Clock, Mapping[nn.Module, str], Forecast | None], Callable[[], int]] = _no_forecast
    ahead: Callable[[Undo, Session, Callable[[int], Sequence[bool]]], None] | None = None
