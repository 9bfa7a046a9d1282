"""Compare partial steps with skipping alone at the same block FLOPs: where they pay, and where they do not."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fastcache_xdit.approx.forms import FORM
from fastcache_xdit.bench.editing import LocalEdit, box, box_mask
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.decision.schedule import uniform_mask
from fastcache_xdit.evaluate.flops import counted
from fastcache_xdit.evaluate.quality import psnr_db, to_tensor
from fastcache_xdit.evaluate.token_maps import TokenMap, TokenMaps, assembled
from fastcache_xdit.host.xdit import world
from fastcache_xdit.tuning.calls import PipelineCall
from fastcache_xdit.tuning.runner import Runner

KEPT = 0.25  # share of a whole picture's tokens that a partial step computes
EDITED = 0.25  # side of the edited box over the picture's; a partial step of an edit computes the box
SOME, REGION = {"keep_ratio": KEPT}, {"score": "region", "bucket": 1}
KINDS: dict[str, dict[str, dict[str, Any] | None]] = {
    "text": {
        "steps only": None,
        "tokens, forecast": {**SOME, "static_kv": "forecast"},
        "tokens, reuse": SOME,
        "tokens, drop": {**SOME, "static_kv": "drop"},
        "merged": {"merge_ratio": KEPT},
    },
    "edit": {
        "steps only": None,
        "region, forecast": {**REGION, "static_kv": "forecast"},
        "region, reuse": REGION,
        "region, drop": {**REGION, "static_kv": "drop"},
        "merged": {"merge_ratio": KEPT},
    },
}


@dataclass(frozen=True)
class TokensRow:
    """One config.

    Attributes:
        setting, kind: of `KINDS`.
        mask: 1 for each whole step, p for each partial one, 0 for each skipped one.
        flops: block FLOPs executed over those of uncached generation.
        speedup, speedup_least, speedup_most, repeats: wall time uncached over cached: median, range, repetitions.
        psnr_mean, psnr_min: in dB, over all prompts.
    """

    setting: str
    kind: str
    mask: str
    flops: float
    speedup: float
    speedup_least: float
    speedup_most: float
    repeats: int
    psnr_mean: float
    psnr_min: float


def partial_mask(steps: int, budget: float, kept: float) -> str:
    """Return a mask that spends half of a budget on even whole steps, and half on even partial ones between them."""
    whole = uniform_mask(steps, max(1, round(budget * steps / 2)))
    places = [step for step, mark in enumerate(whole) if mark == "0"]
    count = min(len(places), round((budget * steps - whole.count("1")) / kept))
    chosen = {places[index] for index, mark in enumerate(uniform_mask(len(places), count)) if mark == "1"}
    return "".join("p" if step in chosen else mark for step, mark in enumerate(whole))


def region_mask(steps: int, budget: float, cost: float) -> str:
    """Return a mask of partial steps, at `cost` of a whole one, with as many even whole ones as the budget allows."""
    whole = int((budget - cost) * steps / (1 - cost) + 1e-9)
    return uniform_mask(steps, max(1, whole)).replace("0", "p")


class PartialBench:
    """Measure one setting, `text` (whole pictures) or `edit` (local edits), against uncached generation.

    An edit changes each prompt's picture, inside a box, towards the next prompt; only the box is judged. FLOPs are
    those of the first batch, and its wall time is taken `repeats` times, cached beside uncached.
    """

    def __init__(
        self, runner: Runner, calls: Sequence[PipelineCall], calibration: str, setting: str, repeats: int = 3
    ) -> None:
        self.setting = setting
        self.calibration = calibration
        self.repeats = repeats
        self.steps = calls[0].steps
        self.tasks = [self._task(runner, call) for call in calls]
        self.truth, self.flops = self._judged(None)

    def rows(self, budgets: Sequence[float]) -> Iterator[TokensRow]:
        """Measure every kind at every budget."""
        for budget in budgets:
            for kind, tokens in KINDS[self.setting].items():
                yield self._row(kind, self._config(budget, tokens))

    def _task(self, runner: Runner, call: PipelineCall) -> tuple[Runner, PipelineCall]:
        if self.setting == "text":
            return runner, call
        pictures, seeds = runner.uncached(call), [each.initial_seed() for each in call.generator()]
        noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(seeds[0]))
        edit = LocalEdit(runner.target.scheduler, pictures, noise, EDITED)
        prompts = call.arguments["prompt"]
        edited = call.changed(
            prompt=prompts[1:] + prompts[:1],
            generator=[torch.Generator().manual_seed(seed + 1000) for seed in seeds],
            callback=edit,
            callback_steps=1,
        )
        return Runner(runner.target, region=box_mask(pictures, EDITED)), edited

    def _config(self, budget: float, tokens: dict[str, Any] | None) -> FastCacheConfig:
        return self._scheduled(self._mask(budget, tokens), tokens)

    def _scheduled(self, mask: str, tokens: dict[str, Any] | None) -> FastCacheConfig:
        fitted = {"stand_in": FORM, "calibration": self.calibration}
        return FastCacheConfig.scheduled(mask, **fitted, lead_blocks=0, tokens=tokens)

    def _mask(self, budget: float, tokens: dict[str, Any] | None) -> str:
        if tokens is None:
            return uniform_mask(self.steps, round(budget * self.steps))
        if tokens.get("score") == "region":
            return region_mask(self.steps, budget, self._cost(tokens))
        return partial_mask(self.steps, budget, KEPT)

    def _cost(self, tokens: dict[str, Any]) -> float:
        """Measure a partial step's FLOPs over a whole one's; text, for one, is computed whole."""
        partial = self.steps - 1
        spent = self._counted(self._scheduled("1" + partial * "p", tokens))[1] / self.flops
        return (spent * self.steps - 1) / partial

    def _row(self, kind: str, config: FastCacheConfig) -> TokensRow:
        images, flops = self._judged(config)
        psnr = psnr_db(images, self.truth)
        ratios = sorted(self._seconds(None) / self._seconds(config) for _ in range(self.repeats))
        times = statistics.median(ratios), ratios[0], ratios[-1], self.repeats
        mask = (config.schedule or {})[self.steps]
        return TokensRow(self.setting, kind, mask, flops / self.flops, *times, sum(psnr) / len(psnr), min(psnr))

    def _judged(self, config: FastCacheConfig | None) -> tuple[torch.Tensor, int]:
        """Return the judged part of all images, [N, 3, h, w], and the first batch's block FLOPs."""
        first, flops = self._counted(config)
        images = to_tensor(first + [image for runner, call in self.tasks[1:] for image in runner.images(call, config)])
        if self.setting == "text":
            return images, flops
        rows, columns = box(images, EDITED)
        return images[..., rows, columns], flops

    def _counted(self, config: FastCacheConfig | None) -> tuple[list[Any], int]:
        runner, call = self.tasks[0]
        with counted(runner.target) as flops:
            images = runner.images(call, config)
        return images, flops.total()

    def changes(self) -> tuple[Any, list[TokenMap]]:
        """Return the first uncached image, and how far its tokens move at partial steps of half a budget."""
        runner, call = self.tasks[0]
        maps = TokenMaps()
        config = self._scheduled(partial_mask(self.steps, 1 / 2, KEPT), SOME)
        with runner.enabled(config, observer=maps) as generate:
            generate(call)
        image = runner.images(call, None)[0]
        return image, assembled([maps], image.height, image.width)

    def _seconds(self, config: FastCacheConfig | None) -> float:
        runner, call = self.tasks[0]
        world.barrier()
        start = time.perf_counter()
        runner.images(call, config)
        world.barrier()
        return time.perf_counter() - start
