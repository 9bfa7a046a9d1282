"""Plans the best mask for a budget from a calibration alone, by exact dynamic programming without model calls."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch

from fastcache_xdit.approx.fit import Places, fit
from fastcache_xdit.approx.forms import FORMS
from fastcache_xdit.approx.moments import Halves
from fastcache_xdit.errors import UsageError

LONGEST_GAP = 10  # steps between a computed step and the one before it
_STRENGTHS = (1e-3, float("inf"))
_CHUNK = 400  # number of places solved at a time, to limit memory


class ErrorTable:
    """The squared relative error of the stand-in at step i, given the last two computed steps j and k.

    Indexed by (i, j, k); k is -1 if there is only one computed step.

    Args:
        form: name of the form.
        halves: moments of one stream.
        longest_gap: largest distance between computed steps in the table.
    """

    def __init__(self, form: str, halves: Halves, longest_gap: int = LONGEST_GAP) -> None:
        self.steps = halves.training.steps
        self.longest_gap = min(longest_gap, self.steps)
        self._errors: dict[tuple[int, int, int], float] = {}
        one_reference = [(i, 0) for i in range(1, min(self.longest_gap, self.steps - 1) + 1)]
        two_references = [
            (i, j, k)
            for k, j in itertools.combinations(range(self.steps), 2)
            if j - k <= self.longest_gap
            for i in range(j + 1, min(j + self.longest_gap, self.steps - 1) + 1)
        ]
        self._solve(form, halves, [(*place, -1) for place in one_reference], count=1)
        self._solve(form, halves, two_references, count=2)

    def __getitem__(self, place: tuple[int, int, int]) -> float:
        return self._errors[place]

    def _solve(self, form: str, halves: Halves, places: list[tuple[int, int, int]], count: int) -> None:
        for start in range(0, len(places), _CHUNK):
            chunk = places[start : start + _CHUNK]
            steps, references = torch.tensor([place[0] for place in chunk]), torch.tensor(chunk)[:, 1 : 1 + count]
            fits = fit(FORMS[form], halves.training, halves.held_out, Places(steps, references), _STRENGTHS)
            self._errors |= dict(zip(chunk, fits.relative_error.square().tolist(), strict=True))


class PlannedMask(NamedTuple):
    """A mask and its cost, the weighted sum of squared errors."""

    cost: float
    mask: str


def plan(table: ErrorTable, gains: Sequence[float], computed: int, coherence: float = 0.0) -> PlannedMask:
    """Return the best mask of `computed` steps among all masks whose gaps the table covers (method.md 1).

    A run of skipped steps costs (sum_i (gain_i error_i)^p)^(2/p), and the costs of runs add up. p is 2 for independent
    errors within a run (`coherence` 0) and 1 for errors that add up (`coherence` 1). The state of the dynamic programme
    are the last two computed steps.

    Args:
        table: errors of the stand-in.
        gains: weight of the error at each step.
        computed: number of computed steps.
        coherence: 0 to 1.
    Raises:
        UsageError: so few computed steps leave longer gaps than the table covers.
    """
    power = 2 - coherence
    best: dict[tuple[int, int], tuple[float, tuple[int, ...]]] = {(0, -1): (0.0, (0,))}
    for _ in range(computed - 1):
        best = _one_more(table, gains, power, best)
    ends = [(cost + _run(table, gains, power, *state, table.steps), chosen) for state, (cost, chosen) in best.items()]
    cost, chosen = min(ends, default=(float("inf"), ()))
    if cost == float("inf"):
        raise UsageError(f"{computed} computed of {table.steps} steps leave gaps longer than {table.longest_gap}")
    return PlannedMask(cost, "".join("1" if step in chosen else "0" for step in range(table.steps)))


def _one_more(
    table: ErrorTable, gains: Sequence[float], power: float, best: dict[tuple[int, int], tuple[float, tuple[int, ...]]]
) -> dict[tuple[int, int], tuple[float, tuple[int, ...]]]:
    """Extend the best choices of computed steps, by their last two, by one more step."""
    extended: dict[tuple[int, int], tuple[float, tuple[int, ...]]] = {}
    for (j, k), (cost, chosen) in best.items():
        for i in range(j + 1, min(j + table.longest_gap, table.steps - 1) + 1):
            total = cost + _run(table, gains, power, j, k, i)
            if total < extended.get((i, j), (float("inf"),))[0]:
                extended[i, j] = (total, (*chosen, i))
    return extended


def _run(table: ErrorTable, gains: Sequence[float], power: float, j: int, k: int, stop: int) -> float:
    """Return the cost of skipping all steps between j and `stop`."""
    if stop - 1 - j > table.longest_gap:
        return float("inf")
    errors = [gains[i] ** power * table[i, j, k] ** (power / 2) for i in range(j + 1, stop)]
    return sum(errors) ** (2 / power)
