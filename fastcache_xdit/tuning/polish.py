"""Trains the stand-ins of a mask on the final latents, by gradient descent through the whole sampler."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import fields

import torch
from torch import nn

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.approx.fitted import Fitted, Refitted, weighted_sum
from fastcache_xdit.approx.linear import Past
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.decision.schedule import computed_steps, skipped_steps
from fastcache_xdit.models.spec import Streams
from fastcache_xdit.tuning.calls import Call
from fastcache_xdit.tuning.coverage import is_held_out
from fastcache_xdit.tuning.refit import Refits
from fastcache_xdit.tuning.runner import Runner, relative_error

RATE = 0.1  # learning rate of Adam; `fit.directions` scales parameters to the error of the stand-in
JUDGED_EVERY = 8  # iterations


class TrainableStandIn:
    """A `StandIn` of one segment under one mask, with learned changes of its fitted coefficients.

    Before `prepare` it equals the fitted one and records the streams that it is used for.

    Args:
        fitted: the fitted stand-in.
    """

    def __init__(self, fitted: Fitted) -> None:
        self.fitted = fitted
        self.references, self.entered_kept = fitted.references, fitted.entered_kept
        self.streams: set[str] = set()
        self.computed: dict[tuple[str, int], tuple[int, ...]] = {}  # by stream and skipped step, the steps before it
        self.learned: dict[tuple[str, int], nn.Parameter] = {}
        self._base: dict[tuple[str, int], torch.Tensor] = {}
        self._directions: dict[tuple[str, int], torch.Tensor] = {}

    def begin(self, sigmas: Sequence[float]) -> None:
        """Begin a request whose steps have these noise levels."""
        self.fitted.begin(sigmas)

    def prepare(self, mask: Sequence[bool]) -> None:
        """Create parameters for every skipped step of a mask and every stream of the requests so far."""
        for step, computed in skipped_steps(mask):
            for stream in Streams._fields:
                if stream in self.streams:
                    self.computed[stream, step] = computed
        places = [(stream, step, computed) for (stream, step), computed in self.computed.items()]
        self._base = {place[:2]: self.fitted.coefficients(*place).float() for place in places}
        self._directions = {place[:2]: self.fitted.directions(*place).float() for place in places}
        self.learned = {
            key: nn.Parameter(torch.zeros(directions.shape[:2])) for key, directions in self._directions.items()
        }

    def residual(self, stream: str, entered: torch.Tensor, past: Past) -> torch.Tensor:
        """Return the residual with the coefficients learned so far, or with fitted ones before `prepare`."""
        self.streams.add(stream)
        if not self.learned:
            return self.fitted.residual(stream, entered, past)
        weights = self.coefficients(stream, past.step).to(entered.device).unbind(-1)
        return weighted_sum(weights, entered, past.references[: self.references])

    def coefficients(self, stream: str, step: int) -> torch.Tensor:
        """Return the weights [D, 2K+2] float32 of a skipped step, differentiable in the parameters."""
        key = stream, step
        change = self.learned[key][:, None] @ self._directions[key]
        return self._base[key] + change[:, 0]

    def snapshot(self) -> list[torch.Tensor]:
        """Return a copy of the parameters."""
        return [parameter.detach().clone() for parameter in self.learned.values()]

    @torch.no_grad()
    def restore(self, snapshot: Sequence[torch.Tensor]) -> None:
        """Set the parameters to those of a snapshot."""
        for parameter, value in zip(self.learned.values(), snapshot, strict=True):
            parameter.copy_(value)

    def refits(self) -> Refits:
        """Return the learned coefficients."""
        fitted, refits = self.fitted, Refits()
        for (stream, step), computed in self.computed.items():
            key = Refitted(fitted.segment, fitted.name, fitted.sigmas, stream, step, computed[: self.references])
            refits[key] = self.coefficients(stream, step).detach()
        return refits


class TrainableCalibration(Calibration):
    """A calibration whose stand-in can be trained, for models with one segment.

    Attributes:
        trained: the stand-in that was asked for last.
    """

    trained: TrainableStandIn

    @classmethod
    def of(cls, calibration: Calibration) -> TrainableCalibration:
        """Return a trainable copy of a calibration."""
        return cls(**{field.name: getattr(calibration, field.name) for field in fields(calibration) if field.init})

    def stand_in(self, segment: str, name: str, carry_errors: bool, follows: bool = False) -> TrainableStandIn:  # type: ignore[override]
        """Return the trainable stand-in and store it as `trained`."""
        self.trained = TrainableStandIn(super().stand_in(segment, name, carry_errors, follows))
        return self.trained


class Polisher:
    """Trains the stand-ins of masks at one number of steps, in one process.

    The loss is the mean over samples of log |cached - uncached|^2 of the final latents, the counterpart of a mean PSNR
    of images. The logarithm keeps single samples with large errors from dominating.

    Args:
        runner: the model.
        calls: what to train on, all of one number of steps; at least `HELD_OUT_EVERY`, of which the last judges.
        iterations: number of trainings, each on one call; calls are repeated.
    """

    def __init__(self, runner: Runner, calls: Sequence[Call], iterations: int) -> None:
        self.runner, self.iterations = runner, iterations
        self.training = [call for index, call in enumerate(calls) if not is_held_out(index)]
        self.judging = [call for index, call in enumerate(calls) if is_held_out(index)]
        self._references: dict[Call, torch.Tensor] = {}

    def polish(self, config: FastCacheConfig, calibration: Calibration, report: Callable[[str], None]) -> Refits:
        """Train the stand-ins of a mask and return the coefficients with the least error on held-out prompts.

        Args:
            config: the mask, as a schedule of one number of steps.
            calibration: the fits to start from, which are returned if training does not improve them.
            report: called with a line of text now and then.
        """
        calls = (*self.training, *self.judging)
        self._references = self._references or {call: self.runner.uncached(call) for call in calls}
        self.runner.host.transformer.requires_grad_(False)
        trainable = TrainableCalibration.of(calibration)
        with self.runner.enabled(config, trainable) as generate, self.runner.differentiable():
            with torch.no_grad():
                generate(self.judging[0])  # determines the noise levels and the streams
            trainable.trained.prepare(computed_steps(config.schedule or {}, len(self.runner.sigmas())))
            return self._train(trainable.trained, generate, report)

    def _train(
        self, trained: TrainableStandIn, generate: Callable[[Call], torch.Tensor], report: Callable[[str], None]
    ) -> Refits:
        rate, optimizer = RATE, _optimizer(trained)
        first = least = self._judged(generate)
        best = trained.snapshot()
        for iteration, call in zip(range(1, self.iterations + 1), itertools.cycle(self.training), strict=False):
            optimizer.param_groups[0]["lr"] = rate * (1 - (iteration - 1) / self.iterations)
            optimizer.zero_grad()
            self._error(generate, call).backward()
            nn.utils.clip_grad_norm_(trained.learned.values(), 1.0)
            optimizer.step()
            if iteration % JUDGED_EVERY == 0 or iteration == self.iterations:
                now = self._judged(generate)
                report(f"trained {iteration} batches: held-out latents {_decibels(first - now):+.2f} dB")
                if now < least:
                    least, best = now, trained.snapshot()
                else:  # the steps were too large: continue from the best with smaller ones
                    trained.restore(best)
                    rate, optimizer = rate / 2, _optimizer(trained)
        trained.restore(best)
        return trained.refits()

    def _judged(self, generate: Callable[[Call], torch.Tensor]) -> float:
        with torch.no_grad():
            return sum(self._error(generate, call).item() for call in self.judging) / len(self.judging)

    def _error(self, generate: Callable[[Call], torch.Tensor], call: Call) -> torch.Tensor:
        """Return the mean over samples of log |cached - uncached|^2 / |uncached|^2."""
        return 2 * relative_error(generate(call), self._references[call]).log().mean()


def _optimizer(trained: TrainableStandIn) -> torch.optim.Adam:
    return torch.optim.Adam(trained.learned.values(), lr=RATE, betas=(0.9, 0.95))


def _decibels(logarithm: float) -> float:
    return 10 * logarithm / math.log(10)
