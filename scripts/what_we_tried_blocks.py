"""Measure ideas that run a few blocks at a skipped step; docs/what-we-tried.md is written from what this prints.

    python scripts/what_we_tried_blocks.py --model shapes-flux --output docs/bench/ideas

A bridge runs the last blocks on an estimate of the state that enters them. A lead runs the first block, and what it
shows now that earlier steps did not foretell is weighed, low rank across channels. A skipped step that runs k of n
blocks costs k/n of a step, so that a budget has fewer computed steps. Fitted and judged as in what_we_tried.py.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from what_we_tried import BUDGETS, PLAIN, Lab, Study, Weigher, Weights, back, command, fitted, likeness, rows, times

from fastcache_xdit.approx.linear import line_weights
from fastcache_xdit.host.xdit.loading import prepare
from fastcache_xdit.undo import Undo

STRENGTHS = [10.0**power for power in range(-4, 2)]
LAST = 3  # blocks whose outputs are recorded
Streams = tuple[torch.Tensor, ...]  # image, and where the model joins it text, [B, N, D]


class BlockIdea(NamedTuple):
    """Which blocks run at a skipped step, and what is made of them.

    Attributes:
        name: in the table.
        lead: how many of the first blocks.
        tail: how many of the last blocks.
        rank: of the correction across channels.
        inside: the state between lead and tail is estimated; else the output is, and the tail is not run.
        gives_up: one computed step alone is given up, and blocks run at as many of the first skipped steps as that
            pays for; else at all of them.
        costs: False for the mask of the idea without its blocks, which then costs less than the budget.
    """

    name: str
    lead: int = 0
    tail: int = 0
    rank: int = 0
    inside: bool = True
    gives_up: bool = False
    costs: bool = True


IDEAS = [
    BlockIdea(PLAIN.name),
    BlockIdea("the mask of one block at each skipped step, none run", lead=1, costs=False),
    BlockIdea("last block, not corrected", tail=1),
    BlockIdea("last block, rank 8", tail=1, rank=8),
    BlockIdea("last block, rank 32", tail=1, rank=32),
    BlockIdea("last two blocks, rank 8", tail=2, rank=8),
    BlockIdea("last block, rank 8, one computed step given up", tail=1, rank=8, gives_up=True),
    BlockIdea("first block, output, rank 4", lead=1, rank=4, inside=False),
    BlockIdea("first block, output, rank 16", lead=1, rank=16, inside=False),
    BlockIdea("first block, deep residual, rank 16", lead=1, rank=16),
    BlockIdea("first block, output, rank 16, one computed step given up", lead=1, rank=16, inside=False, gives_up=True),
]


class Fit:
    """A weight for each channel, and a low-rank map of features across channels, by whatever they are for."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.weights: dict[Any, torch.Tensor] = {}
        self.maps: dict[Any, torch.Tensor] = {}

    def __call__(
        self,
        key: Any,
        prior: torch.Tensor,
        weighed: torch.Tensor,
        features: torch.Tensor | None,
        wanted: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return the estimate [B, n, C]; with what is wanted it fits first."""
        if wanted is not None:
            self.weights[key] = fitted(weighed, wanted - prior)
        taken = prior + times(weighed, self.weights[key])
        if features is None:
            return taken
        if wanted is not None:
            self.maps[key], crossed = reduced_rank(features, wanted - taken, self.rank)
            return taken + crossed
        return taken + features @ self.maps[key]


def reduced_rank(features: torch.Tensor, wanted: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit a map [K, C] of a rank by reduced-rank ridge regression, of the ridge that is best for every third request.

    Return also what each third of the requests gets from a map fitted to the others: what is fitted on the way behind
    must not trust the map more than held-out requests may.
    """
    thirds = torch.arange(len(features)) % 3
    solvers = [solver(features[thirds != third], wanted[thirds != third], rank) for third in range(3)]

    def crossed(strength: float, third: int) -> torch.Tensor:
        return features[thirds == third] @ solvers[third](strength)

    def error(strength: float) -> float:
        return (crossed(strength, 2) - wanted[thirds == 2]).square().sum().item()

    best = min(STRENGTHS, key=error)
    told = torch.zeros_like(wanted)
    if error(best) > wanted[thirds == 2].square().sum().item():
        return torch.zeros(features.shape[-1], wanted.shape[-1], dtype=features.dtype), told
    for third in range(3):
        told[thirds == third] = crossed(best, third)
    return solver(features, wanted, rank)(best), told


def solver(features: torch.Tensor, wanted: torch.Tensor, rank: int) -> Callable[[float], torch.Tensor]:
    """Return what solves a reduced-rank ridge regression; its strength is relative to the features' energy."""
    x, y = features.flatten(0, 1), wanted.flatten(0, 1)
    gram, right = x.T @ x, x.T @ y
    energy = gram.diagonal().diag()
    floor = 1e-9 * energy.max() * torch.eye(len(gram), dtype=gram.dtype) + 1e-30

    def solve(strength: float) -> torch.Tensor:
        full = torch.linalg.solve(gram + strength * energy + floor, right)
        main = torch.linalg.eigh(full.T @ gram @ full).eigenvectors[:, -rank:]
        return full @ main @ main.T

    return solve


class Middle:
    """The blocks between lead and tail: at steps that show something they are not run, and their output is estimated.

    Args:
        lab: the model.
        idea: which blocks run.
        shows: for each step, whether only lead and tail run.
        fit: estimates the state behind the middle.
        wanted: that state by step, call and stream, to fit to.
    """

    def __init__(
        self, lab: Lab, idea: BlockIdea, shows: Sequence[bool], fit: Fit, wanted: dict[Any, Streams] | None = None
    ) -> None:
        transformer = lab.transformer
        lists = ("transformer_blocks", "single_transformer_blocks", "blocks")
        self.blocks = [block for name in lists for block in getattr(transformer, name, [])]
        self.lab, self.idea, self.shows, self.fit, self.wanted = lab, idea, shows, fit, wanted
        self.forecast = Fit(0)
        self.step = self.call = 0
        self.past: dict[int, list[tuple[int, Streams, Streams]]] = {}  # by call: step, shown, behind; newest first
        self.shown: Streams = ()
        self.entered: Streams = ()
        self.innovations: list[torch.Tensor] = []  # by call, [B, N, D]
        self.recorded: dict[Any, Streams] = {}  # by block, step and call

    def install(self, undo: Undo) -> None:
        """Replace the forwards of all blocks."""
        for index, block in enumerate(self.blocks):
            undo.set(block, "forward", partial(self._run, index, block.forward))

    def next_step(self) -> None:
        """Begin a step."""
        self.step, self.call, self.innovations = self.step + 1, 0, []

    def _run(self, index: int, forward: Callable, *args: Any, **kwargs: Any) -> Any:
        states = streams_of(args, kwargs)
        last = len(self.blocks) - self.idea.tail - 1
        if index == 0:
            self.call, self.entered = self.call + 1, states
        if index == self.idea.lead:
            self.shown = states
            self._note_innovation()
        shows = self.step < len(self.shows) and self.shows[self.step]
        if not shows or index < self.idea.lead or index > last:
            result = forward(*args, **kwargs)
            if not shows:
                self._keep(index, last, result)
            return result
        if index < last or not self.idea.inside:
            return as_result(states)
        return as_result(tuple(self._estimate(stream) for stream in range(len(states))))

    def _keep(self, index: int, last: int, result: Any) -> None:
        behind = streams_behind(result)
        if self.wanted is None and not self.shows and index >= len(self.blocks) - LAST:
            self.recorded[index, self.step, self.call] = behind
        if index == last and self.shows:
            self.past.setdefault(self.call, []).insert(0, (self.step, self.shown, behind))

    def _note_innovation(self) -> None:
        """Keep what the lead shows now less what earlier steps and the latents foretell of it."""
        past = self.past.get(self.call, [])[:3]
        if past and self.idea.lead and self.shows[self.step]:
            now = self.shown[0].double()
            weighed = torch.stack([self.entered[0].double(), *(shown[0].double() for _, shown, _ in past)], -1)
            wanted = now if self.wanted is not None else None
            told = self.forecast((self.step, self.call), torch.zeros_like(now), weighed, None, wanted)
            self.innovations.append(now - told)

    def _estimate(self, stream: int) -> torch.Tensor:
        past = self.past[self.call][:3]
        levels = self.lab.sigmas
        factors = line_weights([levels[step] for step, *_ in past[:2]], levels[self.step])
        behind = [each[stream].double() for _, _, each in past]
        now = self.shown[stream].double()
        prior = sum(factor * each for factor, each in zip(factors, behind, strict=False))
        weighed = [*behind, now, past[0][1][stream].double()] if self.idea.lead else [*behind, now]
        features = self._features(stream, prior, now)
        key, block = (self.step, self.call, stream), len(self.blocks) - self.idea.tail - 1
        wanted = None if self.wanted is None else self.wanted[block, self.step, self.call][stream].double()
        return self.fit(key, prior, torch.stack(weighed, -1), features, wanted).to(self.shown[stream].dtype)

    def _features(self, stream: int, prior: torch.Tensor, now: torch.Tensor) -> torch.Tensor | None:
        if not self.idea.rank:
            return None
        if self.idea.lead:
            return self.innovations[-1] if stream == 0 else now
        return torch.cat([prior, now], -1)


def streams_of(args: tuple, kwargs: dict[str, Any]) -> Streams:
    """Return the states that enter a block."""
    image = args[0] if args else kwargs["hidden_states"]
    joined = not args and "temb" in kwargs  # FLUX.1; others hand the text to cross-attention, where it never changes
    return (image, kwargs["encoder_hidden_states"]) if joined else (image,)


def streams_behind(result: Any) -> Streams:
    """Return the states that a block returned."""
    return (result[1], result[0]) if isinstance(result, tuple) else (result,)


def as_result(states: Streams) -> Any:
    """Return states as a block returns them."""
    return (states[1], states[0]) if len(states) == 2 else states[0]


class Shower(Weigher):
    """Weighs also what the blocks that ran at a skipped step show."""

    def __init__(self, middle: Middle, mask: str, weights: Weights, maps: Fit, wanted: Sequence[torch.Tensor]) -> None:
        super().__init__(PLAIN, middle.lab, mask, weights, wanted)
        self.middle, self.maps = middle, maps
        self.output = torch.empty(0)

    def __call__(self, step: int, output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """Return what the scheduler gets at a step."""
        self.output = output
        taken = super().__call__(step, output, sample)
        if self.middle.shows[step] and not self.middle.idea.inside:
            taken = taken + self._low_rank(step, taken, sample)
        self.middle.next_step()
        return taken

    def weighed(self, sample: torch.Tensor) -> torch.Tensor:
        """Return what is weighed: also the output behind the blocks that ran."""
        weighed, step = super().weighed(sample), self.middle.step
        if not (self.middle.shows[step] and self.middle.idea.inside):
            return weighed
        return torch.cat([weighed, rows(self.output)[..., None]], -1)

    def _low_rank(self, step: int, taken: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """Return the map of the innovations of all branches that adds to an output."""
        parts = [part for call in self.middle.innovations for part in call.chunk(len(call) // len(taken))]
        features = torch.cat(parts, -1)
        if self.wanted:
            missing = tokens_of(self.missing(step, taken, sample), features.shape[1])
            self.maps.maps[step], crossed = reduced_rank(features, missing, self.maps.rank)
            return untokened(crossed, taken)
        return untokened(features @ self.maps.maps[step], taken)


def tokens_of(values: torch.Tensor, tokens: int) -> torch.Tensor:
    """Bring an output to the model's tokens, [B, N, C] float64; one of pictures has patches of 2 x 2."""
    if values.ndim == 4 and values.shape[2:].numel() > tokens:
        values = F.pixel_unshuffle(values, 2)
    return rows(values)


def untokened(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Bring tokens back to the form and dtype of an output."""
    if like.ndim != 4 or values.shape[-1] == like.shape[1]:
        return back(values, like)
    height, width = like.shape[2:]
    images = values.transpose(1, 2).unflatten(2, (height // 2, width // 2))
    return F.pixel_shuffle(images, 2).to(like.dtype)


class BlockStudy(Study):
    """Every such idea at every budget on one model."""

    def __init__(self, name: str, taught: int, judged: int) -> None:
        super().__init__(name, taught, judged)
        recorder = Middle(self.lab, BlockIdea(""), (), Fit(0))
        self._generate(recorder, self.taught.batch, lambda step, output, sample: (recorder.next_step(), output)[1])
        self.states = recorder.recorded
        self.blocks = len(recorder.blocks)

    def computed(self, idea: BlockIdea, budget: str) -> int:
        """Return how many steps are computed, so that with the blocks at skipped steps the budget is kept."""
        steps, share = len(self.lab.sigmas), (idea.lead + idea.tail) / self.blocks
        allowed = steps / BUDGETS[budget]
        if idea.gives_up:
            return int(allowed) - 1
        return int((allowed - steps * share) / (1 - share) + 1e-9)

    def shows(self, idea: BlockIdea, mask: str) -> list[bool]:
        """Return for each step whether only the idea's blocks run."""
        run = idea.lead + idea.tail
        paid = self.blocks // run if idea.gives_up else len(mask)
        skipped = [step for step, computed in enumerate(mask) if computed == "0"]
        return [run > 0 and idea.costs and step in skipped[:paid] for step in range(len(mask))]

    def block_row(self, idea: BlockIdea, budget: str) -> dict[str, Any]:
        """Fit an idea and judge it."""
        mask = self.masks.mask(self.computed(idea, budget))
        shows, fit, maps, weights = self.shows(idea, mask), Fit(idea.rank), Fit(idea.rank), Weights()
        middle = Middle(self.lab, idea, shows, fit, self.states)
        self._generate(middle, self.taught.batch, Shower(middle, mask, weights, maps, self.taught.latents))
        judging = Middle(self.lab, idea, shows, fit)
        judging.forecast = middle.forecast
        pictures = self._generate(judging, self.judged.batch, Shower(judging, mask, weights, maps, ()))
        decibels = self.decibels(pictures)
        cost = mask.count("1") + sum(shows) * (idea.lead + idea.tail) / self.blocks
        return {
            "idea": idea.name,
            "budget": budget,
            "mask": mask,
            "compute_steps": round(cost, 2),
            "taught": len(self.taught.batch),
            "judged": len(self.judged.batch),
            **likeness(decibels),
        }

    def _generate(self, middle: Middle, batch: Any, stand_in: Callable) -> torch.Tensor:
        """Generate; where nothing is shown, a skipped step of a mask does not call the blocks at all."""
        mask = "".join(
            "1" if shown or computed == "1" else "0"
            for shown, computed in zip(middle.shows, getattr(stand_in, "mask", ""), strict=True)
        )
        with Undo() as undo:
            middle.install(undo)
            return self.lab.generate(batch, mask, stand_in)[0]


def main() -> None:
    """Measure all such ideas on one model."""
    options = command(__doc__).parse_args()
    prepare()
    torch.set_grad_enabled(False)
    study = BlockStudy(options.model, options.taught, options.judged)
    path = options.output / f"{options.model}-{options.taught}-blocks.json"
    found = []
    for budget, idea in itertools.product(BUDGETS, IDEAS):
        if study.computed(idea, budget) < 1:
            continue
        found.append(study.block_row(idea, budget))
        print(json.dumps(found[-1]), flush=True)
        path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
