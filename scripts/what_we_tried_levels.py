"""Measure steps at chosen noise levels; docs/what-we-tried.md is written from what this prints.

    python scripts/what_we_tried_levels.py --model shapes-flux --output docs/bench/ideas

As many steps as a budget computes, at noise levels that are found by coordinate search: those behind which the final
latents of the taught requests are most like the ones of all 20 steps. Either with the model's own solver, without a
cache, or with a fitted one: a step moves the latents by what the last three outputs and the latents weigh, a weight for
each channel and step, which is what a cache with moved steps would do. Rows that the file has are not measured again.
"""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import Any

import torch
from scipy.interpolate import CubicSpline
from what_we_tried import (
    BUDGETS,
    PLAIN,
    Lab,
    StandIn,
    Study,
    Weights,
    back,
    command,
    fitted,
    likeness,
    percentile_5,
    rows,
    times,
)

from fastcache_xdit.approx.linear import line_weights
from fastcache_xdit.host.xdit.engine import Batch
from fastcache_xdit.host.xdit.loading import prepare
from fastcache_xdit.undo import Undo

CROSSED = "fitted solver, moved levels, judged by others"
MOVES = (0.3, 0.15)  # of the way to the next level on either side, one round each
TRIALS = 20  # of one search, at most
Levels = tuple[float, ...]  # of the steps; the last one leads to 0


def own(step: int, output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
    """Hand the output itself over."""
    return output


class Solver:
    """Weighs outputs and latents for a whole step; with `wanted` latents before each step it fits its weights."""

    def __init__(self, levels: Levels, weights: Weights, wanted: Sequence[torch.Tensor] = ()) -> None:
        self.levels, self.weights, self.wanted = (*levels, 0.0), weights, wanted
        self.past: list[torch.Tensor] = []

    def __call__(self, step: int, output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """Return the mean output of a step, towards the straight line's (Adams and Bashforth's)."""
        self.past.insert(0, output.clone())
        level, following = self.levels[step : step + 2]
        known = [self.levels[step - earlier] for earlier in range(len(self.past[:2]))]
        factors = line_weights(known, (level + following) / 2)
        prior = sum(factor * each for factor, each in zip(factors, self.past, strict=False))
        weighed = torch.stack([rows(each) for each in (*self.past[:3], sample)], -1)
        if self.wanted:
            missing = (self.wanted[step + 1] - sample) / (following - level) - prior
            self.weights[step] = fitted(weighed, rows(missing))
        return prior + back(times(weighed, self.weights[step]), prior)


class LevelStudy(Study):
    """A model at other noise levels than its scheduler's; levels are searched with the first taught requests."""

    def __init__(self, name: str, taught: int, judged: int, searched: int) -> None:
        super().__init__(name, taught, judged)
        self.searched_with = searched
        self.grid = [float(sigma) for sigma in self.lab.scheduler.sigmas]
        rising = CubicSpline(self.grid[::-1], torch.eye(len(self.grid)).flip(0).numpy())
        self.between = lambda levels: torch.from_numpy(rising(levels)).float()  # [K, T + 1]
        self.path = torch.stack(self.taught.latents)

    def even(self, steps: int) -> Levels:
        """Return evenly spaced levels, the first that of pure noise."""
        return tuple(self.grid[0] * (1 - step / steps) for step in range(steps))

    def of_mask(self, steps: int) -> Levels:
        """Return the levels of the steps that a planned mask computes."""
        mask = self.masks.mask(steps)
        return tuple(level for level, computed in zip(self.grid, mask, strict=False) if computed == "1")

    def wanted(self, levels: Levels) -> list[torch.Tensor]:
        """Return the taught requests' latents at these levels and at 0, on the path of all steps."""
        weights = self.between([*levels, 0.0]).to(self.path.dtype)
        return list(torch.einsum("kt,t...->k...", weights, self.path))

    def distance(self, levels: Levels, is_fitted: bool, is_crossed: bool = False) -> float:
        """Return the mean of the logarithms of some requests' squared errors.

        They are the first taught ones, those that weights are fitted to; crossed, they are as many others.
        """
        part, weights = slice(self.searched_with), Weights()
        solver = Solver(levels, weights, [each[part] for each in self.wanted(levels)]) if is_fitted else own
        _, latents = at_levels(self.lab, self.taught.batch[part], levels, solver)
        if is_crossed:
            part = slice(self.searched_with, 2 * self.searched_with)
            _, latents = at_levels(self.lab, self.taught.batch[part], levels, Solver(levels, weights))
        return (latents - self.path[-1, part]).double().square().flatten(1).mean(1).log().mean().item()

    def searched(self, levels: Levels, is_fitted: bool, is_crossed: bool = False) -> Levels:
        """Move one level after the other for as long as it helps."""
        best, left = self.distance(levels, is_fitted, is_crossed), TRIALS
        for move, step in itertools.product(MOVES, range(1, len(levels))):
            for trial in itertools.islice(moved(levels, step, move), left):
                found, left = self.distance(trial, is_fitted, is_crossed), left - 1
                if found < best:
                    best, levels = found, trial
                    break
        return levels

    def ways(self, budget: str) -> dict[str, Callable[[], dict[str, Any]]]:
        """Return by idea what measures a row: the cache, and all ways to place as many steps."""
        steps = int(len(self.lab.sigmas) / BUDGETS[budget])
        even, of_mask = self.even(steps), self.of_mask(steps)

        def nearer() -> Levels:
            return min((even, of_mask), key=lambda levels: self.distance(levels, False))

        found: dict[str, tuple[Callable[[], Levels], bool]] = {
            "own solver, even levels": (lambda: even, False),
            "own solver, moved levels": (lambda: self.searched(nearer(), False), False),
            "fitted solver, levels of the mask": (lambda: of_mask, True),
            "fitted solver, moved levels": (lambda: self.searched(of_mask, True), True),
            CROSSED: (lambda: self.searched(of_mask, True, True), True),
        }
        levels = {name: partial(self.level_row, name, budget, *way) for name, way in found.items()}
        return {PLAIN.name: partial(self.row, PLAIN, budget), **levels}

    def level_row(self, name: str, budget: str, place: Callable[[], Levels], is_fitted: bool) -> dict[str, Any]:
        """Judge steps at the levels where they are placed."""
        levels = place()
        decibels = self.judged_at(levels, is_fitted)
        return {
            "idea": name,
            "budget": budget,
            "levels": [round(level, 4) for level in levels],
            "taught": len(self.taught.batch),
            "searched": len(self.taught.batch[: self.searched_with]),
            "judged": len(self.judged.batch),
            **likeness(decibels),
        }

    def judged_at(self, levels: Levels, is_fitted: bool) -> list[float]:
        """Return the likeness in dB of each judged request, behind steps at these levels."""
        weights = Weights()
        if is_fitted:
            at_levels(self.lab, self.taught.batch, levels, Solver(levels, weights, self.wanted(levels)))
        solver = Solver(levels, weights) if is_fitted else own
        return self.decibels(at_levels(self.lab, self.judged.batch, levels, solver, latent=False)[0])

    def again(self, known: dict[str, Any]) -> dict[str, Any]:
        """Judge the levels of a row anew: how certain is the gain over the cache, picture by picture?"""
        _, cached, _ = self.judge(PLAIN, known["budget"])
        found = self.judged_at(tuple(known["levels"]), known["idea"].startswith("fitted"))
        gains = [each - before for each, before in zip(found, cached, strict=True)]
        return {
            **{key: known[key] for key in ("idea", "budget", "levels", "taught", "searched")},
            "judged": len(gains),
            "gain_db": round(statistics.fmean(gains), 2),
            "standard_error_db": round(statistics.stdev(gains) / len(gains) ** 0.5, 2),
            "percentile_5_db": [percentile_5(each) for each in (cached, found)],
        }


def moved(levels: Levels, step: int, move: float) -> Iterator[Levels]:
    """Yield levels of which one is moved up, and down."""
    around = (*levels, 0.0)
    for neighbour in (around[step - 1], around[step + 1]):
        yield (*levels[:step], levels[step] + move * (neighbour - levels[step]), *levels[step + 1 :])


def at_levels(
    lab: Lab, batch: Batch, levels: Levels, stand_in: StandIn, latent: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generate at these levels; a fitted solver's steps are straight. Return pictures and final latents."""
    scheduler, known = lab.scheduler, lab.call
    set_timesteps, following = scheduler.set_timesteps, iter([*levels[1:], 0.0])
    behind = iter(levels)

    @wraps(set_timesteps)
    def placed(*args: Any, **kwargs: Any) -> None:
        set_timesteps(*args, **kwargs)
        scheduler.sigmas = torch.tensor([*levels, 0.0], dtype=scheduler.sigmas.dtype)
        scheduler.timesteps = (torch.tensor(levels) * 1000).to(scheduler.timesteps.dtype)

    def straight(output: torch.Tensor, timestep: Any, sample: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor]:
        return (sample + (next(following) - next(behind)) * output,)

    with Undo() as undo:
        undo.set(scheduler, "set_timesteps", placed)
        if isinstance(stand_in, Solver):
            undo.set(scheduler, "step", straight)
        lab.call = {**known, "num_inference_steps": len(levels), **({"output_type": "latent"} if latent else {})}
        try:
            return lab.generate(batch, "", stand_in)
        finally:
            lab.call = known


def check(study: LevelStudy) -> float:
    """Return how far the own solver at all levels of the scheduler is from the reference: 0 if levels are set right."""
    _, latents = at_levels(study.lab, study.taught.batch[:2], tuple(study.grid[:-1]), own)
    return (latents - study.path[-1, :2]).abs().max().item()


def main() -> None:
    """Measure all placements on one model."""
    parser = command(__doc__)
    parser.add_argument("--searched", type=int, default=16, help="how many of these search levels; default: 16")
    parser.add_argument("--budgets", nargs="+", choices=BUDGETS, default=BUDGETS, help="default: all")
    parser.add_argument("--again", action="store_true", help="judge levels that were found anew, on other --judged")
    options = parser.parse_args()
    prepare()
    torch.set_grad_enabled(False)
    study = LevelStudy(options.model, options.taught, options.judged, options.searched)
    if check(study) > 1e-3:
        raise SystemExit("the scheduler did not take the levels it was given")
    path = options.output / f"{options.model}-{options.taught}-levels.json"
    found = json.loads(path.read_text()) if path.exists() else []
    if options.again:
        kept = [row for row in found if row["idea"] == CROSSED and row["budget"] in options.budgets]
        write([study.again(row) for row in kept], path.with_stem(f"{path.stem}-again"))
        return
    known = {(row["idea"], row["budget"]) for row in found}
    for budget in options.budgets:
        for idea, measure in study.ways(budget).items():
            if (idea, budget) not in known:
                found.append(measure())
                write(found, path)


def write(found: list[dict[str, Any]], path: Path) -> None:
    """Write rows, and print the last one."""
    print(json.dumps(found[-1]), flush=True)
    path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
