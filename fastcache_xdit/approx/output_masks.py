"""The best mask of computed steps for the output of a denoiser, by exact dynamic programming (method.md 1)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise

import numpy as np

from fastcache_xdit.approx.linear import line_weights
from fastcache_xdit.approx.moments import Halves

LONGEST_GAP = 10  # steps between computed steps, or a quarter of all where that is more
RIDGE = 1e-3  # relative to the energy of each reference
_State = tuple[int, int]  # the last two computed steps, newest first; -1: there is none


class OutputMasks:
    """The masks for one sequence of noise levels, one for each number of computed steps.

    A run of skipped steps costs what is left of the energy of sum_k effects[k] (error of step k) after the best fit of
    this sum by the two outputs before the run, the same weights for all channels. Costs of runs add up.

    Args:
        halves: moments of the output at these noise levels.
        effects: for each step, by how much an error of its output shows in the final latents.
    """

    def __init__(self, halves: Halves, effects: Sequence[float]) -> None:
        self.sigmas = halves.training.sigmas
        self.steps = len(self.sigmas)
        total = halves.training.plus(halves.held_out).gram[:, : self.steps, : self.steps].sum(dim=0)
        self._gram = total.numpy()
        self._effects = np.asarray(effects)
        self._longest = max(LONGEST_GAP, self.steps // 4)

    def mask(self, computed: int) -> str:
        """Return the best mask with so many computed steps, at least one, the first step among them."""
        chosen = self._chosen[min(computed, self.steps)]
        return "".join("1" if step in chosen else "0" for step in range(self.steps))

    def cost(self, computed: Sequence[int]) -> float:
        """Return what a mask costs by its computed steps, the first one among them."""
        states = [(newest, before) for before, newest in pairwise((-1, *computed))]
        return sum(self._run(state, stop) for state, stop in zip(states, (*computed[1:], self.steps), strict=True))

    @cached_property
    def _chosen(self) -> dict[int, tuple[int, ...]]:
        """The computed steps of the best mask by their number; numbers that leave too long gaps take an even mask."""
        best: dict[_State, tuple[float, tuple[int, ...]]] = {(0, -1): (0.0, (0,))}
        chosen = {}
        for computed in range(1, self.steps + 1):
            chosen[computed] = self._best_end(best) or _even(self.steps, computed)
            best = self._one_more(best)
        return chosen

    def _best_end(self, best: dict[_State, tuple[float, tuple[int, ...]]]) -> tuple[int, ...]:
        ends = [(cost + self._run(state, self.steps), steps) for state, (cost, steps) in best.items()]
        cost, steps = min(ends, default=(np.inf, ()))
        return steps if cost < np.inf else ()

    def _one_more(self, best: dict[_State, tuple[float, tuple[int, ...]]]) -> dict:
        extended: dict[_State, tuple[float, tuple[int, ...]]] = {}
        for (newest, before), (cost, steps) in best.items():
            for step in range(newest + 1, min(newest + self._longest + 2, self.steps)):
                total = cost + self._run((newest, before), step)
                if total < extended.get((step, newest), (np.inf,))[0]:
                    extended[step, newest] = total, (*steps, step)
        return extended

    def _run(self, state: _State, stop: int) -> float:
        """Return the cost of skipping all steps between the newest computed one and `stop`."""
        if stop - 1 - state[0] > self._longest:
            return np.inf
        if stop == state[0] + 1:
            return 0.0
        return self._costs[state][stop - state[0] - 2]

    @cached_property
    def _costs(self) -> dict[_State, list[float]]:
        """For each state the costs of runs of 1, 2, ... skipped steps."""
        before = range(-1, self.steps)
        states = [(newest, older) for newest in range(self.steps) for older in before if older < newest]
        return {state: self._costs_after(state) for state in states if state[1] >= 0 or state[0] == 0}

    def _costs_after(self, state: _State) -> list[float]:
        references = [step for step in state if step >= 0]
        square = self._gram[np.ix_(references, references)]
        square = square + RIDGE * np.diag(np.diag(square))
        stop = min(state[0] + 1 + self._longest, self.steps)
        skipped = np.arange(state[0] + 1, stop)
        missed = np.zeros((len(skipped), self.steps))  # accumulated effects, less what the straight line gives
        missed[np.arange(len(skipped)), skipped] = self._effects[skipped]
        lines = [line_weights([self.sigmas[i] for i in references], self.sigmas[step]) for step in skipped]
        missed[:, references] -= self._effects[skipped, None] * np.asarray(lines).reshape(len(skipped), len(references))
        missed = missed.cumsum(axis=0)
        missed[:, references] -= np.linalg.solve(square, self._gram[references] @ missed.T).T
        return np.einsum("ri,ij,rj->r", missed, self._gram, missed).tolist()


def _even(steps: int, computed: int) -> tuple[int, ...]:
    return tuple(sorted({round(number * steps / computed) for number in range(computed)}))
