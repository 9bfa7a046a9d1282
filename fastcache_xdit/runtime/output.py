"""Runs a denoiser whose whole output is stood in for (`granularity: output`); its blocks are not touched.

At a skipped step the denoiser is not called: it returns its last output once more, which only has to have the right
form, and whatever the pipeline makes of it is replaced where it is handed to the scheduler. So one estimate serves both
branches of guidance, whatever its formula. In a loop without a scheduler the output itself is replaced.

Outputs are kept as copies: a CUDA graph writes all of its outputs into the same memory.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fastcache_xdit.approx.linear import kept_dtype
from fastcache_xdit.approx.output import REFERENCES, SEGMENT, combined
from fastcache_xdit.clock import Clock, Tick
from fastcache_xdit.decision.evidence import Decision
from fastcache_xdit.models.streams import tensors_in
from fastcache_xdit.parallel.ledger import Entry
from fastcache_xdit.partial.steps import PartialSteps
from fastcache_xdit.runtime.pilot import Pilot
from fastcache_xdit.runtime.record import Record
from fastcache_xdit.runtime.returned import tensor_of, with_tensor
from fastcache_xdit.segments.sums import ErrorSums

COMPUTED, SKIPPED = Decision(False, "plan", 0.0, 0.0), Decision(True, "plan", 0.0, 0.0)
CHECK, NO_REFERENCE = Decision(False, "check", 0.0), Decision(False, "no reference")
_Past = list[tuple[int, torch.Tensor]]  # (step, output), newest first
_Key = tuple[str, int | None, int]  # branch, patch and batch size of a call


class OutputDriver:
    """Skips calls of a denoiser as the pilot plans, and estimates what the scheduler gets instead.

    Args:
        pilot: plans requests.
        record: where decisions are recorded.
        clock: position of the current call.
        hands_over: whether a scheduler is given the outputs, through `handed_over`; without one each call's own output
            is replaced, and nothing is checked.
    """

    partial: PartialSteps | None = None

    def __init__(self, pilot: Pilot, record: Record, clock: Clock, hands_over: bool) -> None:
        self.pilot = pilot
        self.record = record
        self.clock = clock
        self.hands_over = hands_over
        self._returned: dict[_Key, Any] = {}  # last output, of each kind of call
        self._past: dict[Any, _Past] = {}  # by patch, or where nothing is handed over by kind of call
        self._guided: dict[int | None, frozenset[_Key]] = {}  # the calls behind the newest output of `_past`
        self._calls: set[_Key] = set()  # since the scheduler advanced
        self._computed: dict[Any, tuple[int, ...]] = {}
        self._skipped: dict[int | None, int] = {}  # the last skipped step, by patch
        self._missed = math.inf  # relative error of the worst sample where it was last measured

    def begin(self, sigmas: list[float]) -> None:
        """Begin a request whose steps have these noise levels."""
        self.reset()
        self.plan(sigmas)

    def plan(self, sigmas: list[float]) -> None:
        """Plan the running request for these noise levels."""
        self.pilot.begin(sigmas)
        if reason := self.pilot.unfit():
            self.record.remarks.make(reason)

    def reset(self) -> None:
        """Forget all cached outputs; the next step is computed."""
        for kept in (self._returned, self._past, self._guided, self._calls, self._computed, self._skipped):
            kept.clear()
        self._missed = math.inf

    def bytes_held(self) -> int:
        """Return the bytes of the cached outputs, and of what was planned."""
        held = [output for past in self._past.values() for _, output in past]
        held += [tensor for output in self._returned.values() for tensor in tensors_in(output)]
        return sum(output.numel() * output.element_size() for output in held) + self.pilot.bytes_held()

    def release(self) -> None:
        """Forget all that a new request does without."""
        self.reset()
        self.pilot.release()

    def call(self, tick: Tick, compute: functools.partial[Any]) -> Any:
        """Run one call of the denoiser, or hand back its last output in the place of a skipped one."""
        key = tick.branch, tick.patch, _batch_size(compute)
        self._calls.add(key)
        decision = self._decide(tick, key)
        self._note(tick, decision)
        if not decision.skip:
            output = compute()
            self._returned[key] = pytree.tree_map_only(torch.Tensor, torch.clone, output)
            if not self.hands_over:
                self._keep(key, tick.step, tensor_of(output))
            return output
        last = self._returned[key]
        if self.hands_over:
            return last
        return with_tensor(last, self._estimate(key, tick.step, tensor_of(last).dtype, None))

    def handed_over(self, output: torch.Tensor, tick: Tick, latents: torch.Tensor) -> torch.Tensor:
        """Return what the scheduler shall get after a call: the output as it is, or the estimate of a skipped step."""
        if not self.hands_over:
            return output
        calls, self._calls = frozenset(self._calls), set()
        self._split(tick, output)
        if self._skipped.get(tick.patch) == tick.step:
            return self._estimate(tick.patch, tick.step, output.dtype, latents)
        if self._guided.setdefault(tick.patch, calls) != calls:  # guidance was switched on or off
            self._guided[tick.patch] = calls
            self._past.pop(tick.patch, None)
            self._computed.pop(tick.patch, None)
        self._check(tick, output, latents)
        self._keep(tick.patch, tick.step, output)
        return output

    def record_remote_skip(self, tick: Tick) -> None:
        """Record a skipped step that is run without a call of the denoiser here."""
        self._note(tick, SKIPPED)

    def _split(self, tick: Tick, output: torch.Tensor) -> None:
        """Let a PipeFusion patch go on from its part of the outputs of the full sequence."""
        if tick.rows and tick.patch not in self._past and None in self._past:
            self._past[tick.patch] = [(step, _part(full, output, tick.rows)) for step, full in self._past[None]]
            self._computed[tick.patch] = self._computed[None]

    def _decide(self, tick: Tick, key: _Key) -> Decision:
        if not self.pilot.skips(tick.step):
            return COMPUTED
        if key not in self._returned:
            return NO_REFERENCE
        if not self._checks:
            return SKIPPED
        within = self._missed <= self.record.config.check
        return (SKIPPED if within else CHECK)._replace(predicted_error=self._missed)

    @property
    def _checks(self) -> bool:
        """Whether the running request is checked; those that are recorded or made again have their masks."""
        return self.record.config.check > 0 and not self.pilot.forced

    def _check(self, tick: Tick, output: torch.Tensor, latents: torch.Tensor) -> None:
        """Measure the error that the estimate of a computed step would have had, where the next step may be skipped.

        All ranks get here at the same steps and get the same number, with one message and one read on the host.
        """
        past = self._past.get(tick.patch)
        if not self._checks or not past or not self.pilot.skips(tick.step + 1):
            return
        sums = ErrorSums.measured(output, self._estimate(tick.patch, tick.step, output.dtype, latents)).packed()
        total = self.record.consensus.agree(sums, self.record.ledger.stamp, f"{tick}, output")
        self._missed = ErrorSums(*total.unbind(-1)).relative.amax().item()  # NaN wins, and is not within any bound
        self.record.counters.nonfinite += math.isnan(self._missed)

    def _note(self, tick: Tick, decision: Decision) -> None:
        if decision.skip:
            self._skipped[tick.patch] = tick.step
        self.record.ledger.record(Entry(tick.step, tick.branch, tick.patch, SEGMENT, *decision))
        self.record.counters.note(SEGMENT, 1, computed=not decision.skip)

    def _keep(self, key: Any, step: int, output: torch.Tensor) -> None:
        past = self._past.setdefault(key, [])
        dtype = kept_dtype(self.record.config.reference_dtype, output.dtype)
        past.insert(0, (step, output.to(dtype, copy=True)))
        del past[REFERENCES:]
        self._computed[key] = (step, *self._computed.get(key, ()))

    def _estimate(self, key: Any, step: int, dtype: torch.dtype, latents: torch.Tensor | None) -> torch.Tensor:
        weights = self.pilot.weights(step, self._computed[key], sees_latents=latents is not None)
        return combined(weights, [output for _, output in self._past[key]], latents, dtype)


def _batch_size(call: functools.partial[Any]) -> int:
    """Return the batch size of a call; guidance that is switched off within a request halves it."""
    return next((len(given) for given in tensors_in([call.args, call.keywords]) if given.ndim > 1), 0)


def _part(full: torch.Tensor, like: torch.Tensor, rows: tuple[int, int]) -> torch.Tensor:
    """Cut an output of the full sequence, [B, N, C] or [B, C, H, W], to the rows of a patch whose output is `like`.

    The lines of a picture are cut in the same proportion.
    """
    dim = 1 if full.ndim == 3 else 2
    start = rows[0] * like.shape[dim] // (rows[1] - rows[0])
    return full.narrow(dim, start, like.shape[dim])
