"""Measure whether the worst pictures can be told before they are lost; docs/what-we-tried.md is written from this.

    python scripts/what_we_tried_tail.py --model shapes-flux --judged 128 --output docs/bench/ideas

A budget can only be spent where it is needed if something tells the pictures that will come out far from uncached, and
early enough. For each step: how well do requests tell their worst tenth by what can be seen there, the distance of a
computed output from what would have stood in for it, and by what nobody sees while serving, the true distance of the
latents from the uncached ones. And what comes out if the budget is spent so: after the first two thirds of the computed
steps, the half of the requests that stands out gets a step more than planned, and the other half one less.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from typing import Any

import torch
from scipy.stats import mannwhitneyu, spearmanr
from what_we_tried import (
    BUDGETS,
    PLAIN,
    Study,
    Weigher,
    Weights,
    back,
    command,
    fitted,
    likeness,
    relative,
    rows,
    times,
)

from fastcache_xdit.host.xdit.loading import prepare

WORST = 0.1  # of all requests


class Witness(Weigher):
    """Notes by step what can be seen of each request, and with `uncached` latents before each step what is true."""

    def __init__(self, study: Study, mask: str, weights: Weights, estimates: Weights, teaches: bool = False) -> None:
        super().__init__(PLAIN, study.lab, mask, weights, study.taught.latents if teaches else ())
        self.estimates = estimates  # weights at computed steps
        self.uncached = () if teaches else study.judged.latents
        self.seen: dict[int, list[float]] = {}
        self.true: dict[int, list[float]] = {}

    def __call__(self, step: int, output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """Return what the scheduler gets at a step."""
        if self.uncached and "0" in self.mask[:step]:
            self.true[step] = relative(sample, self.uncached[step])
        if self.mask[step] == "1" and self.past:
            self.seen[step] = relative(self.estimate(step, output, sample), output)
        return super().__call__(step, output, sample)

    def estimate(self, step: int, output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """Return what would stand in for a computed output."""
        prior, weighed = self.line(step), self.weighed(sample)
        if self.wanted:
            self.estimates[step] = fitted(weighed, rows(output - prior))
        return prior + back(times(weighed, self.estimates[step]), prior)


class TailStudy(Study):
    """What tells the worst pictures of one model."""

    def witnessed(self, mask: str) -> tuple[list[float], Witness]:
        """Fit a mask; return the likeness in dB of each judged request, and what was noted of them."""
        weights, estimates = Weights(), Weights()
        self.lab.generate(self.taught.batch, mask, Witness(self, mask, weights, estimates, teaches=True))
        witness = Witness(self, mask, weights, estimates)
        pictures, _ = self.lab.generate(self.judged.batch, mask, witness)
        return self.decibels(pictures), witness

    def row_of(self, budget: str) -> dict[str, Any]:
        """Tell at each step how likely a request of the worst tenth stands out more than another one.

        That is the area under the ROC curve: 1 where all do, 0.5 where they look like all others.
        """
        computed = int(len(self.lab.sigmas) / BUDGETS[budget])
        mask = self.masks.mask(computed)
        decibels, witness = self.witnessed(mask)
        bad = torch.tensor(decibels) <= torch.tensor(decibels).quantile(WORST)
        begun = [step for step, mark in enumerate(mask) if mark == "1"][: math.ceil(2 * computed / 3)]
        less, more = (self.witnessed(self.finished(begun, number))[0] for number in (computed - 1, computed + 1))
        seen, losses = witness.seen[begun[-1]], [-each for each in decibels]
        return {
            "budget": budget,
            "mask": mask,
            "taught": len(self.taught.batch),
            "judged": len(self.judged.batch),
            **likeness(decibels),
            "seen": {step: told(values, bad) for step, values in witness.seen.items()},
            "true": {step: told(values, bad) for step, values in witness.true.items()},
            "spent_after": begun[-1],
            "spent_by_chance": likeness(spent([index % 2 - 0.5 for index in range(len(seen))], less, more)),
            "spent_as_seen": likeness(spent(seen, less, more)),
            "spent_as_lost": likeness(spent(losses, less, more)),
            "one_more_for_all": likeness(more),
            "losses_alike": round(float(spearmanr(decibels, more).statistic), 2),
        }

    def finished(self, begun: Sequence[int], computed: int) -> str:
        """Return the best mask that begins with these computed steps."""
        later = itertools.combinations(range(begun[-1] + 1, len(self.lab.sigmas)), computed - len(begun))
        best = min(([*begun, *rest] for rest in later), key=self.masks.cost)
        return "".join("1" if step in best else "0" for step in range(len(self.lab.sigmas)))


def spent(signs: Sequence[float], less: Sequence[float], more: Sequence[float]) -> list[float]:
    """Return the likenesses if the half with the larger signs gets more, and the other half less."""
    middle = float(torch.tensor(signs).median())
    return [high if sign > middle else low for sign, low, high in zip(signs, less, more, strict=True)]


def told(values: list[float], bad: torch.Tensor) -> float:
    """Return the probability that a bad request has the larger value of two."""
    each = torch.tensor(values)
    above = mannwhitneyu(each[bad], each[~bad]).statistic
    return round(float(above / (bad.sum() * (~bad).sum())), 2)


def main() -> None:
    """Measure all budgets on one model."""
    options = command(__doc__).parse_args()
    prepare()
    torch.set_grad_enabled(False)
    study = TailStudy(options.model, options.taught, options.judged)
    found = []
    for budget in BUDGETS:
        found.append(study.row_of(budget))
        print(json.dumps(found[-1]), flush=True)
    (options.output / f"{options.model}-{options.taught}-tail.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
