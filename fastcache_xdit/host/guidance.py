"""How guidance combines the transformer's outputs into what the scheduler is given: measured by least squares."""

from __future__ import annotations

import functools
import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from fastcache_xdit.clock import Clock
from fastcache_xdit.host.xdit import world
from fastcache_xdit.undo import Undo

logger = logging.getLogger(__name__)

LINEAR = 1e-2  # a smaller residual is rounding: bfloat16 leaves 0.4 %
MOST_CALLS = 8  # kept of one step, so that nothing piles up on a rank that never calls the scheduler
_HALVES = ("first half", "second half")


class Part(NamedTuple):
    """What guidance combines: the output of one call of the transformer, or a half of its batch.

    Attributes:
        branch: name of the call's CFG branch, see `Clock`.
        call: number of the call among those of this branch in the step, from 0.
        half: 0 or 1 where the batch holds two branches, those of CFG parallelism in rank order; None for all of it.
    """

    branch: str
    call: int = 0
    half: int | None = None

    def __str__(self) -> str:
        call = f"call {self.call + 1}" if self.call else ""
        half = "" if self.half is None else _HALVES[self.half]
        return " ".join(word for word in (self.branch, call, half) if word)


class Combination(NamedTuple):
    """The linear combination of parts that is nearest to the `model_output` of `scheduler.step`.

    Attributes:
        parts: what is combined; one part where there is no guidance, or where it is embedded.
        weights: a number for each part.
        residual: norm of what the combination misses, over that of `model_output`; 0 if guidance is linear.
    """

    parts: tuple[Part, ...]
    weights: tuple[float, ...]
    residual: float

    def __str__(self) -> str:
        return " ".join(f"{weight:+.3f} {part}" for part, weight in zip(self.parts, self.weights, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"parts": list(map(str, self.parts)), "weights": list(self.weights), "residual": self.residual}


class Guidance:
    """Watches the outputs of a transformer and what `scheduler.step` is given of them.

    Args:
        transformer: the module whose forward is one step, see `Host`.
        scheduler: its scheduler; without one nothing is found.
    """

    def __init__(self, transformer: nn.Module, scheduler: Any) -> None:
        self.transformer = transformer
        self.scheduler = scheduler
        self._calls: deque[tuple[str, Any]] = deque(maxlen=MOST_CALLS)  # of the current step: branch and output
        self._request = self._step = 0
        self._parts: dict[int, tuple[Part, ...]] = {}  # by step; empty where they do not match the scheduler's
        self._grams: dict[tuple[Part, ...], torch.Tensor] = {}

    def attach(self, clock: Clock, undo: Undo) -> None:
        """Watch for as long as the undo log is open; the clock, which numbers the steps, must tick around the calls."""
        if self.scheduler is not None:
            undo.wrap(self.transformer, "__call__", functools.partial(self._watched, clock))
            undo.wrap(self.scheduler, "step", self._given)

    def combinations(self) -> dict[int, Combination]:
        """Return the combination of each step of the last request; every rank must call it, and gets the same.

        Steps with the same parts share their weights, those of all requests that were watched. A formula that is not
        linear is told to the log, and so are steps whose shapes do not match what the scheduler is given; the latter
        are left out.
        """
        if self.scheduler is None:
            return {}
        sums: dict[tuple[Part, ...], torch.Tensor] = {}
        for grams in world.all_gather_objects({parts: gram.cpu() for parts, gram in self._grams.items()}):
            for parts, gram in grams.items():
                sums[parts] = sums.get(parts, 0) + gram
        found = {parts: _solved(parts, gram) for parts, gram in sums.items() if gram.isfinite().all()}
        for combination in found.values():
            if combination.residual > LINEAR:
                _tell(f"guidance is not linear; taken as {combination}, which misses {combination.residual:.0%}")
        if any(parts not in found for parts in self._parts.values()):
            _tell("the transformer's outputs do not match what the scheduler is given: guidance remains unknown")
        return {step: found[parts] for step, parts in self._parts.items() if parts in found}

    def _watched(self, clock: Clock, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        if clock.request != self._request:
            self._request = clock.request
            self._calls.clear()
            self._parts.clear()
        self._step = clock.now.step if clock.now else self._step
        self._calls.append((clock.branch, _kept(output)))
        return output

    def _given(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._add(kwargs.get("model_output", args[0] if args else None))
        return original(*args, **kwargs)

    @torch.no_grad()
    def _add(self, given: Any) -> None:
        outputs, given = _matched(tuple(self._calls), given)
        self._calls.clear()
        parts = self._parts[self._step] = tuple(outputs)
        if parts:
            rows = torch.stack([tensor.double().flatten() for tensor in (*outputs.values(), given)])
            self._grams[parts] = self._grams.get(parts, 0) + rows @ rows.T


def _kept(output: Any) -> Any:
    """Return a copy of the output of a transformer, of all branches; pipelines may change theirs in place."""
    first = output[0] if isinstance(output, (tuple, list)) else getattr(output, "sample", output)
    return world.gather_cfg_branches(first.detach().clone()) if isinstance(first, torch.Tensor) else None


def _matched(calls: Sequence[tuple[str, Any]], given: Any) -> tuple[dict[Part, torch.Tensor], Any]:
    """Return the parts and what they are combined to, in one shape; no parts where shapes do not match."""
    tensors = [given, *(output for _, output in calls)]
    if not calls or not all(isinstance(tensor, torch.Tensor) and tensor.dim() > 1 for tensor in tensors):
        return {}, given
    if _is_doubled(given, calls[0][1]):
        given = given.chunk(2)[0]
    parts: dict[Part, torch.Tensor] = {}
    numbers: Counter[str] = Counter()
    for branch, output in calls:
        output = output[:, : given.shape[1]]  # behind it: a learned variance, or tokens of a reference image
        halves = len(output) == 2 * len(given)
        for half, own in enumerate(output.chunk(2) if halves else [output]):
            if own.shape != given.shape:
                return {}, given
            parts[Part(branch, numbers[branch], half if halves else None)] = own.to(given.device)
        numbers[branch] += 1
    return parts, given


def _is_doubled(given: torch.Tensor, output: torch.Tensor) -> bool:
    """Tell whether a batch of two branches is given to the scheduler with both halves combined, as DiTPipeline does."""
    if len(output) != len(given) or len(given) % 2:
        return False
    return torch.equal(*given.chunk(2)) and not torch.equal(*output[:, : given.shape[1]].chunk(2))


def _solved(parts: tuple[Part, ...], gram: torch.Tensor) -> Combination:
    """Return the least squares solution from the Gram matrix of the parts and, last, what they are combined to."""
    inner, outer, energy = gram[:-1, :-1], gram[:-1, -1], gram[-1, -1]
    weights = torch.linalg.pinv(inner, rtol=1e-12, hermitian=True) @ outer
    missed = (energy - 2 * weights @ outer + weights @ inner @ weights).clamp(min=0)
    return Combination(parts, tuple(weights.tolist()), (missed / energy).sqrt().item() if energy else 0.0)


@functools.cache
def _tell(line: str) -> None:
    """Log a warning, once however many requests it is true of."""
    logger.warning(line)
