"""Measure ideas for what stands in for a denoiser's output; docs/what-we-tried.md is written from what this prints.

    python scripts/what_we_tried.py --model shapes-flux --output docs/bench/ideas

Every idea is fitted on the same requests, one skipped step after the other on the trajectory that the mask leads to,
and judged on held-out prompts. What it is fitted to at a step is the output behind which the latents are those of the
uncached request again. Ridge towards the straight line through the last two outputs, as strong as every third request
says.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from scipy.stats import spearmanr

from fastcache_xdit.approx.linear import line_weights
from fastcache_xdit.approx.moments import Halves
from fastcache_xdit.approx.output_masks import OutputMasks
from fastcache_xdit.bench.peers.backends import PlainBackend
from fastcache_xdit.evaluate.quality import psnr_db
from fastcache_xdit.host.effects import Effects, SchedulerEffects
from fastcache_xdit.host.xdit.engine import Batch, Request
from fastcache_xdit.host.xdit.loading import prepare
from fastcache_xdit.learning.trajectory import moments_of
from fastcache_xdit.shipped import calibration_prompts, generation_defaults, held_out_prompts, model_path
from fastcache_xdit.undo import Undo

BUDGETS = {"1/2": 2, "1/3": 3, "1/4": 4, "1/5": 5}
STRENGTHS = [10.0**power for power in range(-6, 3)]
SEED = 42
Weights = dict[int, torch.Tensor]  # by step


class Idea(NamedTuple):
    """What is weighed at a skipped step.

    Attributes:
        name: in the table.
        references: how many of the last computed outputs.
        latents: the current latents are weighed as well.
        spread: "channel" for a weight per channel, "channels" to mix them, "3x3" to mix neighbours as well, "bands" for
            weights of the means of 2 x 2 and of what is left.
        corrects: computed steps are corrected too, for what the skipped ones before them missed.
    """

    name: str
    references: int = 3
    latents: bool = False
    spread: str = "channel"
    corrects: bool = False


PLAIN = Idea("last three outputs and the latents", latents=True)  # what is kept, which other ideas are measured against
IDEAS = [
    Idea("last three outputs"),
    Idea("all outputs", references=99),
    PLAIN,
    Idea("all outputs and the latents", references=99, latents=True),
    Idea("two bands", spread="bands"),
    Idea("channels mixed", spread="channels"),
    Idea("neighbours and channels mixed", spread="3x3"),
    Idea("corrected at computed steps", corrects=True),
    Idea("corrected at computed steps, with the latents", latents=True, corrects=True),
]


class Reference(NamedTuple):
    """A batch that was computed in full: latents before the first and behind each step, outputs, and pictures."""

    batch: Batch
    latents: list[torch.Tensor]
    outputs: list[torch.Tensor]
    pictures: torch.Tensor


StandIn = Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor]  # (step, output, latents) -> what is handed over


class Lab:
    """A shipped model whose calls are skipped by a mask, and whose scheduler gets what a function says."""

    def __init__(self, name: str) -> None:
        self.backend = PlainBackend(str(model_path(name)), "float32")
        self.call = generation_defaults(name)
        self.scheduler, self.transformer = self.backend.pipe.scheduler, self.backend.pipe.transformer
        self.sigmas: list[float] = []
        self.effects: Effects | None = None

    def reference(self, batch: Batch) -> Reference:
        """Compute a batch in full."""
        outputs: list[torch.Tensor] = []
        latents: list[torch.Tensor] = []

        def watch(step: int, output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
            if not self.sigmas:
                self.sigmas = [float(timestep) / 1000 for timestep in self.scheduler.timesteps]
                self.effects = SchedulerEffects(self._copy(), lambda: self.sigmas)()
            outputs.append(output.clone())
            latents.append(sample.clone())
            return output

        pictures, last = self.generate(batch, "", watch)
        return Reference(batch, [*latents, last], outputs, pictures)

    def generate(self, batch: Batch, mask: str, stand_in: StandIn) -> tuple[torch.Tensor, torch.Tensor]:
        """Return pictures and final latents; an empty mask skips nothing."""
        step, call = 0, 0
        last = torch.empty(0)
        kept: dict[int, Any] = {}
        forward, advance = self.transformer.forward, self.scheduler.step

        def called(*args: Any, **kwargs: Any) -> Any:
            nonlocal call
            call += 1
            if mask[step : step + 1] != "0":
                kept[call] = forward(*args, **kwargs)
            return kept[call]

        def stepped(output: torch.Tensor, timestep: Any, sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            nonlocal step, call, last
            result = advance(stand_in(step, output, sample), timestep, sample, *args, **kwargs)
            last, step, call = result[0], step + 1, 0
            return result

        with Undo() as undo:
            undo.set(self.transformer, "forward", called)
            undo.set(self.scheduler, "step", stepped)
            return self.backend.generate(batch, self.call), last

    def behind(self, output: torch.Tensor, step: int, sample: torch.Tensor) -> torch.Tensor:
        """Return the latents behind the running step if its output were this one."""
        scheduler = self._copy()
        return scheduler.step(output, scheduler.timesteps[step], sample, return_dict=False)[0]

    def _copy(self) -> Any:
        scheduler = copy.deepcopy(self.scheduler)
        del scheduler.step  # what `generate` put there
        return scheduler


class Weigher:
    """Stands in for outputs as an idea says; with `wanted` latents behind each step it fits its weights on the way."""

    def __init__(self, idea: Idea, lab: Lab, mask: str, weights: Weights, wanted: Sequence[torch.Tensor] = ()) -> None:
        self.idea, self.lab, self.mask, self.weights, self.wanted = idea, lab, mask, weights, wanted
        self.past: list[tuple[int, torch.Tensor]] = []  # (step, output) of computed steps, newest first
        self.disagreements: dict[int, list[float]] = {}  # by step, of the straight line with what is taken, by request

    def __call__(self, step: int, output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """Return what the scheduler gets at a step."""
        is_computed = self.mask[step] == "1"
        if is_computed and self.past:
            self.disagreements[step] = relative(self.line(step), output)
        if is_computed:
            self.past.insert(0, (step, output.clone()))
        if is_computed and not (self.idea.corrects and "0" in self.mask[:step]):
            return output
        prior = output if is_computed else self.line(step)
        weighed = self.weighed(sample)
        if self.wanted:
            self.weights[step] = fitted(weighed, rows(self.missing(step, prior, sample)))
        taken = prior + back(times(weighed, self.weights[step]), prior)
        if not is_computed:
            self.disagreements[step] = relative(prior, taken)
        return taken

    def line(self, step: int) -> torch.Tensor:
        """Return the straight line through the last two outputs."""
        known = self.past[:2]
        factors = line_weights([self.lab.sigmas[earlier] for earlier, _ in known], self.lab.sigmas[step])
        return sum(factor * output for factor, (_, output) in zip(factors, known, strict=True))

    def missing(self, step: int, prior: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """Return what must be added to an output for the latents behind it to be the wanted ones."""
        return (self.wanted[step + 1] - self.lab.behind(prior, step, sample)) / self.lab.effects.next[step]

    def weighed(self, sample: torch.Tensor) -> torch.Tensor:
        """Return what is weighed: [B, n, C, K] for each channel alone, or [B, n, K] for all together."""
        values = [output for _, output in self.past[: self.idea.references]]
        values = [*values, sample] if self.idea.latents else values
        if self.idea.spread == "bands":
            values = [part for value in values for part in bands(grid(value))]
        if self.idea.spread == "3x3":
            values = [part for value in values for part in neighbours(grid(value))]
        parts = [rows(value) for value in values]
        return torch.cat(parts, -1) if self.idea.spread in ("channels", "3x3") else torch.stack(parts, -1)


def relative(found: torch.Tensor, true: torch.Tensor) -> list[float]:
    """Return norm(found - true) / norm(true) of each request."""
    ratios: list[float] = ((found - true).flatten(1).norm(dim=1) / true.flatten(1).norm(dim=1)).tolist()
    return ratios


def grid(values: torch.Tensor) -> torch.Tensor:
    """[B, N, C] -> [B, C, H, W], for square pictures; others as they are."""
    side = math.isqrt(values.shape[1])
    return values.transpose(1, 2).unflatten(2, (side, side)) if values.ndim == 3 else values


def rows(values: torch.Tensor) -> torch.Tensor:
    """[B, N, C] or [B, C, ...] -> [B, n, C] float64."""
    return (values if values.ndim == 3 else values.flatten(2).transpose(1, 2)).double()


def back(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """[B, n, C] -> the form and dtype of a tensor."""
    return (values if like.ndim == 3 else values.transpose(1, 2).reshape(like.shape)).to(like.dtype)


def bands(values: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the means of 2 x 2 values, and what is left, [B, C, ..., H, W] each."""
    images = values.flatten(0, -3)[:, None]
    low = F.interpolate(F.avg_pool2d(images, 2), scale_factor=2.0).reshape(values.shape)
    yield from (low, values - low)


def neighbours(values: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the values shifted to each of nine places, [B, C, ..., H, W] each."""
    height, width = values.shape[-2:]
    padded = F.pad(values.flatten(0, -3)[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    for top, left in itertools.product(range(3), repeat=2):
        yield padded[:, top : top + height, left : left + width].reshape(values.shape)


def times(weighed: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the weighted sums, [B, n, C]."""
    return (weighed * weights).sum(-1) if weighed.ndim == 4 else weighed @ weights


def fitted(weighed: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return ridge weights [C, K] or [K, C], of the strength that is best for every third request."""
    judging = torch.arange(len(weighed)) % 3 == 2
    if not judging.any():
        judging[-1] = True

    def error(strength: float) -> float:
        weights = ridge(weighed[~judging], wanted[~judging], strength)
        return (times(weighed[judging], weights) - wanted[judging]).square().sum().item()

    return ridge(weighed, wanted, min(STRENGTHS, key=error))


def ridge(weighed: torch.Tensor, wanted: torch.Tensor, strength: float) -> torch.Tensor:
    """Solve a ridge regression; the strength is relative to the energy of what is weighed."""
    if weighed.ndim == 3:
        x, y = weighed.flatten(0, 1), wanted.flatten(0, 1)
        gram, right = x.T @ x, x.T @ y
        return torch.linalg.solve(gram + strength * gram.diagonal().diag(), right)
    gram = torch.einsum("bnck,bncl->ckl", weighed, weighed)
    right = torch.einsum("bnck,bnc->ck", weighed, wanted)
    return torch.linalg.solve(gram + strength * torch.diag_embed(gram.diagonal(dim1=1, dim2=2)), right)


class Study:
    """Every idea at every budget on one model."""

    def __init__(self, name: str, taught: int, judged: int) -> None:
        self.lab = Lab(name)
        known = calibration_prompts(name)
        others = [text for text in held_out_prompts(name, taught + judged + len(known), SEED) if text not in known]
        self.judged = self.lab.reference(batch_of(others[:judged], SEED))
        taught_by = [*known, *others[judged:]][:taught]
        self.taught = self.lab.reference(batch_of(taught_by, SEED + 1000))
        moments = moments_of([rows(output).flatten(0, 1).float() for output in self.taught.outputs], self.lab.sigmas)
        self.masks = OutputMasks(Halves(moments, moments), self.lab.effects.final)

    def row(self, idea: Idea, budget: str) -> dict[str, Any]:
        """Fit an idea and judge it."""
        mask, decibels, _ = self.judge(idea, budget)
        return {
            "idea": idea.name,
            "budget": budget,
            "mask": mask,
            "taught": len(self.taught.batch),
            "judged": len(self.judged.batch),
            **likeness(decibels),
        }

    def foresight(self, budget: str) -> dict[str, Any]:
        """Tell how well a request's disagreements at each step say how far from uncached its picture will be.

        This is Spearman's rank correlation with the loss in dB: 1 where they order the requests alike, 0 where they say
        nothing. A budget can be spent where it is needed only if it is high before most of it is spent.
        """
        mask, decibels, disagreements = self.judge(IDEAS[0], budget)
        losses = [-each for each in decibels]
        found = {step: spearmanr(values, losses).statistic for step, values in disagreements.items()}
        return {
            "budget": budget,
            "mask": mask,
            "correlation": {step: round(float(each), 2) for step, each in found.items()},
        }

    def judge(self, idea: Idea, budget: str) -> tuple[str, list[float], dict[int, list[float]]]:
        """Fit an idea; return the mask, and of the judged requests the likeness in dB and the disagreements by step."""
        mask = self.masks.mask(int(len(self.lab.sigmas) / BUDGETS[budget]))
        weights: Weights = {}
        fitting = Weigher(idea, self.lab, mask, weights, self.taught.latents)
        self.lab.generate(self.taught.batch, mask, fitting)
        judging = Weigher(idea, self.lab, mask, weights)
        pictures, _ = self.lab.generate(self.judged.batch, mask, judging)
        return mask, self.decibels(pictures), judging.disagreements

    def decibels(self, pictures: torch.Tensor) -> list[float]:
        """Return the likeness of each picture or clip to the one computed in full."""
        frames = len(pictures) // len(self.judged.batch)
        return [
            statistics.fmean(psnr_db(*pair))
            for pair in zip(pictures.split(frames), self.judged.pictures.split(frames), strict=True)
        ]


def likeness(decibels: Sequence[float]) -> dict[str, float]:
    """Return the mean, the 5th percentile and the worst of likenesses in dB, for a row."""
    return {
        "psnr_db": round(statistics.fmean(decibels), 2),
        "percentile_5_db": percentile_5(decibels),
        "worst_db": round(min(decibels), 2),
    }


def percentile_5(decibels: Sequence[float]) -> float:
    """Return the 5th percentile of likenesses in dB."""
    return round(float(torch.tensor(decibels).quantile(0.05)), 2)


def command(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of what all these measurements are asked."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, choices=["shapes-flux", "shapes-pixart", "shapes-video"])
    parser.add_argument("--output", type=Path, required=True, help="folder for a file of rows")
    parser.add_argument("--taught", type=int, default=16, help="requests that weights are fitted to; default: 16")
    parser.add_argument("--judged", type=int, default=32, help="held-out requests; default: 32")
    return parser


def batch_of(prompts: Sequence[str], seed: int) -> Batch:
    """Return requests with seeds of their own."""
    return tuple(Request(index, prompt, seed + index) for index, prompt in enumerate(prompts))


def main() -> None:
    """Measure all ideas on one model."""
    parser = command(__doc__)
    parser.add_argument("--foresight", action="store_true", help="measure instead what disagreements foretell")
    options = parser.parse_args()
    prepare()
    torch.set_grad_enabled(False)
    study = Study(options.model, options.taught, options.judged)
    if options.foresight:
        found, name = (study.foresight(budget) for budget in BUDGETS), "-foresight"
    else:
        found, name = (study.row(idea, budget) for budget, idea in itertools.product(BUDGETS, IDEAS)), ""
    path = options.output / f"{options.model}-{options.taught}{name}.json"
    rows = []
    for row in found:
        rows.append(row)
        print(json.dumps(row), flush=True)
        path.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
