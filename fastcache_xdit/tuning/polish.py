"""Trains a mask's stand-ins on what counts, the final latents: gradient descent through the whole sampler."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from fastcache_xdit.approx.fitted import Fitted, Refitted, combined
from fastcache_xdit.approx.linear import Past
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.decision.schedule import mask_for, skips
from fastcache_xdit.host.xdit.engine import Batch
from fastcache_xdit.tuning.calibrate import HELD_OUT_EVERY
from fastcache_xdit.tuning.refit import Refits
from fastcache_xdit.tuning.runner import Runner, relative_error

RATE = 0.1  # Adam's, in errors of the stand-in itself, see `fit.directions`
JUDGED_EVERY = 8


class Trained:
    """`StandIn` of one segment under one mask: a fitted one, and what is learned beside it."""

    def __init__(self, fitted: Fitted, mask: Sequence[bool], streams: Sequence[str]) -> None:
        self.fitted = fitted
        self.references, self.entered_kept = fitted.references, fitted.entered_kept
        places = [(stream, step, computed) for step, computed in skips(mask) for stream in streams]
        self.known = {(stream, step): computed for stream, step, computed in places}
        self._base = {each[:2]: fitted.coefficients(*each).float() for each in places}
        self._directions = {each[:2]: fitted.directions(*each).float() for each in places}
        self.learned = {each: nn.Parameter(torch.zeros(ways.shape[:2])) for each, ways in self._directions.items()}

    def residual(self, stream: str, entered: torch.Tensor, past: Past) -> torch.Tensor:
        """See `StandIn`."""
        weights = self.coefficients(stream, past.step).to(entered.device).unbind(-1)
        return combined(weights, entered, past.references[: self.references])

    def coefficients(self, stream: str, step: int) -> torch.Tensor:
        """[D, 2K+2] float32."""
        place = stream, step
        change = self.learned[place][:, None] @ self._directions[place]
        return self._base[place] + change[:, 0]

    def copied(self) -> list[torch.Tensor]:
        """What is learned so far."""
        return [each.detach().clone() for each in self.learned.values()]

    @torch.no_grad()
    def restore(self, learned: Sequence[torch.Tensor]) -> None:
        """Go back to what `copied` gave."""
        for parameter, value in zip(self.learned.values(), learned, strict=True):
            parameter.copy_(value)

    def refits(self) -> Refits:
        """What it has come to."""
        fitted, found = self.fitted, Refits()
        for (stream, step), computed in self.known.items():
            known = computed[: self.references]
            name = Refitted(fitted.segment, fitted.name, fitted.sigmas, stream, step, known)
            found[name] = self.coefficients(stream, step).detach()
        return found


class Polisher:
    """Trains the stand-ins of found masks at one number of steps, in one process.

    The loss is the mean over samples of log |cached - uncached|^2 of the final latents, which is what a mean of PSNR is
    to pictures: no sample that is lost all the same outweighs the others.

    Args:
        runner: the model; its call has the number of steps.
        batches: prompts to train on, at least `HELD_OUT_EVERY` batches; the last of each so many judges.
        iterations: batches to train on, over and over.
    """

    def __init__(self, runner: Runner, batches: Sequence[Batch], iterations: int) -> None:
        self.runner, self.iterations = runner, iterations
        self.training = [batch for i, batch in enumerate(batches) if i % HELD_OUT_EVERY < HELD_OUT_EVERY - 1]
        self.judging = list(batches[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY])
        self._truths: dict[Batch, torch.Tensor] = {}

    def polish(self, config: FastCacheConfig, report: Callable[[str], None]) -> Refits:
        """Coefficients that serve held-out prompts best, which those of the config may do."""
        self._truths = self._truths or {each: self.runner.uncached(each) for each in (*self.training, *self.judging)}
        self.runner.host.transformer.requires_grad_(False)
        with self.runner.enabled(config) as watched, self.runner.engine.differentiable():
            driver = watched.handle.driver
            with torch.no_grad():
                watched.generate(self.judging[0])  # tells the noise levels and which streams there are
            streams = next(iter(driver.states.values())).references
            trained = Trained(
                driver.stand_ins[0], mask_for(config.schedule or {}, len(self.runner.sigmas())), [*streams]
            )
            driver.stand_ins = [trained]
            return self._train(trained, watched.generate, report)

    def _train(
        self, trained: Trained, generate: Callable[[Batch], torch.Tensor], report: Callable[[str], None]
    ) -> Refits:
        rate, optimizer = RATE, _optimizer(trained)
        first = least = self._judged(generate)
        best = trained.copied()
        for iteration, batch in zip(range(1, self.iterations + 1), itertools.cycle(self.training), strict=False):
            optimizer.param_groups[0]["lr"] = rate * (1 - (iteration - 1) / self.iterations)
            optimizer.zero_grad()
            self._error(generate, batch).backward()
            nn.utils.clip_grad_norm_(trained.learned.values(), 1.0)
            optimizer.step()
            if iteration % JUDGED_EVERY == 0 or iteration == self.iterations:
                now = self._judged(generate)
                report(f"trained {iteration} batches: held-out latents {_decibels(first - now):+.2f} dB")
                if now < least:
                    least, best = now, trained.copied()
                else:  # too far in one go: back to the best, and on from there by smaller steps
                    trained.restore(best)
                    rate, optimizer = rate / 2, _optimizer(trained)
        trained.restore(best)
        return trained.refits()

    def _judged(self, generate: Callable[[Batch], torch.Tensor]) -> float:
        with torch.no_grad():
            return sum(self._error(generate, batch).item() for batch in self.judging) / len(self.judging)

    def _error(self, generate: Callable[[Batch], torch.Tensor], batch: Batch) -> torch.Tensor:
        """Mean over samples of log |cached - uncached|^2 / |uncached|^2."""
        return 2 * relative_error(generate(batch), self._truths[batch]).log().mean()


def _optimizer(trained: Trained) -> torch.optim.Adam:
    return torch.optim.Adam(trained.learned.values(), lr=RATE, betas=(0.9, 0.95))


def _decibels(logarithm: float) -> float:
    return 10 * logarithm / math.log(10)
