"""Collects second moments while a pipeline generates; activations never leave the request."""

from __future__ import annotations

import functools
import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from fastcache_xdit.approx import keys_values
from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.approx.maps import Covariances
from fastcache_xdit.approx.moments import Moments
from fastcache_xdit.clock import Clock
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.host.xdit import world
from fastcache_xdit.host.xdit.engine import Batch
from fastcache_xdit.models.spec import Streams
from fastcache_xdit.runtime.call import SegmentCall
from fastcache_xdit.runtime.observer import Observer, Watched
from fastcache_xdit.segments.attention import projections
from fastcache_xdit.segments.segment import Block, Segment
from fastcache_xdit.tuning.pairs import Pairs
from fastcache_xdit.tuning.runner import Runner
from fastcache_xdit.undo import Undo

# Token rows kept of one step, over all segments and of each: plenty for a fit of a few weights per channel.
MOST_ROWS, ENOUGH_ROWS = 16384, 256


class _Point(NamedTuple):
    """A place in the stack: before or after a block."""

    block: int
    after: bool


class Recorder(Observer):
    """Sees what enters and leaves each of some segments, which may overlap, at every step of a request.

    Where both branches of guidance run in one batch (uncond, then cond), or on two ranks, the states are combined as
    their outputs will be, u + g (c - u): an error that both branches share is not amplified by guidance, and one in
    their difference is, so that this is where a stand-in has to be right.

    Args:
        segments: what a cache may skip.
        samples: samples of a batch; twice as many rows hold both branches.
        guidance: the scale g.
        pairs: sees segments and their stand-ins as well.
    """

    runs_skipped = True  # the trajectory is that of the stand-ins, the states are what blocks really give on it

    def __init__(self, segments: Sequence[Segment], samples: int, guidance: float, pairs: Pairs | None = None) -> None:
        self.segments = segments
        self.samples = samples
        self.guidance = guidance
        self.pairs = pairs
        self.sees_segments = pairs is not None
        self._clock = Clock()
        self._most_rows = max(MOST_ROWS // len(segments), ENOUGH_ROWS)
        self._seen: dict[tuple[_Point, str], dict[tuple[str, int], torch.Tensor]] = defaultdict(dict)
        self._keys_values: dict[tuple[str, str], list[torch.Tensor]] = {}

    def attach(self, watched: Watched, undo: Undo) -> None:
        """Watch blocks and projections, below the cache, where they show what they really give."""
        self._clock = watched.clock
        first = {segment.blocks[0].index: segment.blocks[0] for segment in self.segments}
        last = {segment.blocks[-1].index: segment.blocks[-1] for segment in self.segments}
        for index in first.keys() | last.keys():
            block = first.get(index) or last[index]
            undo.set(block.module, "forward", self._watched(block, index in first, index in last))
        for name, layer in dict(projections(self.segments)).items():
            undo.set(layer, "forward", self._projecting(name, layer.forward))

    def on_segment(self, segment: Segment, call: SegmentCall, output: Streams, estimate: Streams) -> None:
        """Hand on what segments and stand-ins give."""
        if self.pairs:
            self.pairs.on_segment(segment, call, output, estimate)

    def add_to(self, moments: dict[str, dict[str, Moments]], sigmas: Sequence[float]) -> None:
        """Add the finished request to `moments` by segment and stream."""
        for segment, stream, residuals, entered in self._seen_by_segment(len(sigmas)):
            known = moments.setdefault(segment, {})
            known.setdefault(stream, Moments.empty(sigmas, entered[0].shape[-1])).add(residuals, entered)
        for branch in sorted({branch for branch, _ in self._keys_values}):
            seen = {name: rows for (each, name), rows in self._keys_values.items() if each == branch}
            keys_values.add_to(moments.setdefault(keys_values.SEGMENT, {}), seen, sigmas)

    def add_to_covariances(self, covariances: dict[str, dict[str, Covariances]], steps: int) -> None:
        """Add it to those that whole matrices are fitted from."""
        for segment, stream, residuals, entered in self._seen_by_segment(steps):
            known = covariances.setdefault(segment, {})
            known.setdefault(stream, Covariances.empty(entered[0].shape[-1])).add(residuals, entered)

    def _seen_by_segment(self, steps: int) -> Iterator[tuple[str, str, list[torch.Tensor], list[torch.Tensor]]]:
        """Segment, stream, and residuals and entry states by step, for each branch."""
        for segment in self.segments:
            for stream in Streams._fields:
                into, out = (self._seen.get((point, stream), {}) for point in _ends(segment))
                for branch in sorted({branch for branch, _ in out}):
                    entered = [into[branch, step] for step in range(steps)]
                    yield segment.key, stream, [out[branch, step] - entered[step] for step in range(steps)], entered

    def _watched(self, block: Block, enters: bool, leaves: bool) -> Callable[..., Any]:
        original = block.module.forward
        signature = inspect.signature(original)

        @functools.wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if enters:
                self._note(_Point(block.index, False), block.spec.read(signature.bind(*args, **kwargs).arguments))
            output = original(*args, **kwargs)
            if leaves:
                self._note(_Point(block.index, True), block.spec.unpack(output))
            return output

        return forward

    def _projecting(self, name: str, project: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
            rows = project(*args, **kwargs)
            now = self._clock.now
            if now is not None:
                self._keys_values.setdefault((now.branch, name), []).append(_some_rows(rows, ENOUGH_ROWS))
            return rows

        return forward

    def _note(self, point: _Point, streams: Streams) -> None:
        now = self._clock.now
        if now is None:
            return
        for stream, states in zip(Streams._fields, streams, strict=True):
            if states is not None:
                self._seen[point, stream][now.branch, now.step] = _some_rows(self._guided(states), self._most_rows)

    def _guided(self, states: torch.Tensor) -> torch.Tensor:
        states = world.gather_cfg_branches(states)
        if len(states) != 2 * self.samples:
            return states
        uncond, cond = states.float().chunk(2)
        return torch.lerp(uncond, cond, self.guidance)


def record(
    runner: Runner,
    batch: Batch,
    config: FastCacheConfig,
    calibration: Calibration | None,
    segments: Sequence[Segment],
    pairs: Pairs | None = None,
) -> Recorder:
    """Generate one batch with the cache on, skipped blocks running as well, and return a recorder that has seen it."""
    recorder = Recorder(segments, len(batch), runner.call.get("guidance_scale", 1.0), pairs)
    with runner.enabled(config, calibration, recorder) as cached:
        cached.generate(batch)
    return recorder


def _ends(segment: Segment) -> tuple[_Point, _Point]:
    return _Point(segment.blocks[0].index, False), _Point(segment.blocks[-1].index, True)


def _some_rows(states: torch.Tensor, most: int) -> torch.Tensor:
    """[B, N, D] -> [n, D] on the CPU: every row, or evenly spaced ones, the same at every step."""
    rows = states.detach().flatten(0, 1)
    return rows[:: -(-len(rows) // most)].float().cpu().clone()
