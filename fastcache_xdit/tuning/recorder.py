"""Records the states of segments while a pipeline generates, for second moments; activations are not stored."""

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
from fastcache_xdit.errors import UsageError
from fastcache_xdit.host.guidance import Combination, Guidance
from fastcache_xdit.host.xdit import world
from fastcache_xdit.models.spec import Streams
from fastcache_xdit.runtime.call import SegmentCall
from fastcache_xdit.runtime.observer import Observer, Watched
from fastcache_xdit.segments.attention import projections
from fastcache_xdit.segments.segment import Block, Segment
from fastcache_xdit.tuning.calls import Call
from fastcache_xdit.tuning.pairs import Pairs
from fastcache_xdit.tuning.runner import Runner
from fastcache_xdit.tuning.trajectories import Rows, mixed, sampled, some_rows, trajectories
from fastcache_xdit.undo import Undo

# Token rows recorded at one step, over all segments and at least for each: enough to fit a few weights per channel.
MOST_ROWS, ENOUGH_ROWS = 16384, 256


class _Point(NamedTuple):
    """A place in the stack: before or after a block."""

    block: int
    after: bool


class Recorder(Observer):
    """Records the input and output of segments, which may overlap, at every step of a request.

    The states of CFG branches, in one batch, in calls of their own or on two ranks, are combined like their outputs.
    Guidance amplifies an error in the difference of the branches, but not one that both share, and the combination
    gives such errors this weight in the fits. Where it is unknown, each branch is a trajectory of its own.

    Args:
        segments: the segments that a cache may skip.
        guidance: finds how outputs are combined; not attached yet.
        pairs: an observer of segments and stand-ins to forward calls to, if any.
    """

    runs_skipped = True  # the trajectory is that of the stand-ins, the recorded outputs are the true ones

    def __init__(self, segments: Sequence[Segment], guidance: Guidance, pairs: Pairs | None = None) -> None:
        self.segments = segments
        self.guidance = guidance
        self.pairs = pairs
        self.sees_segments = pairs is not None
        self._clock = Clock()
        self._most_rows = max(MOST_ROWS // len(segments), ENOUGH_ROWS)
        self._rows: dict[tuple[_Point, str], Rows] = defaultdict(dict)
        self._keys_values: dict[tuple[str, str], list[torch.Tensor]] = {}

    @functools.cached_property
    def combinations(self) -> dict[int, Combination]:
        """The combination of each step of the finished request; every rank must ask for it."""
        return self.guidance.combinations()

    def attach(self, watched: Watched, undo: Undo) -> None:
        """Wrap blocks and projections below the cache, to record their true outputs."""
        self._clock = watched.clock
        self.guidance.attach(watched.clock, undo)
        first = {segment.blocks[0].index: segment.blocks[0] for segment in self.segments}
        last = {segment.blocks[-1].index: segment.blocks[-1] for segment in self.segments}
        for index in first.keys() | last.keys():
            block = first.get(index) or last[index]
            undo.set(block.module, "forward", self._watched(block, index in first, index in last))
        for name, layer in dict(projections(self.segments)).items():
            undo.set(layer, "forward", self._projecting(name, layer.forward))

    def on_segment(self, segment: Segment, call: SegmentCall, output: Streams, estimate: Streams) -> None:
        """Forward the outputs of segments and stand-ins to `pairs`."""
        if self.pairs:
            self.pairs.on_segment(segment, call, output, estimate)

    def check(self, steps: int) -> None:
        """Refuse a finished request that did not take so many steps.

        Raises:
            UsageError: it took others, or none where a cache could act.
        """
        taken = {step for rows in self._rows.values() for _, step in rows}
        if not taken:
            raise UsageError("no call of the transformer is one that a cache can skip")
        if len(taken) != steps:
            raise UsageError(f"{len(taken)} steps were taken where {steps} were announced", "give sigmas of every step")

    def add_to(self, moments: dict[str, dict[str, Moments]], sigmas: Sequence[float]) -> None:
        """Add the finished request to `moments`, by segment and stream; `sigmas` are the noise levels of its steps."""
        for segment, stream, residuals, entered in self._by_segment(len(sigmas)):
            by_stream = moments.setdefault(segment, {})
            by_stream.setdefault(stream, Moments.empty(sigmas, entered[0].shape[-1])).add(residuals, entered)
        for branch in sorted({branch for branch, _ in self._keys_values}):
            rows_by_name = {name: rows for (other, name), rows in self._keys_values.items() if other == branch}
            keys_values.add_to(moments.setdefault(keys_values.SEGMENT, {}), rows_by_name, sigmas)

    def add_to_covariances(self, covariances: dict[str, dict[str, Covariances]], steps: int) -> None:
        """Add the finished request of `steps` steps to `covariances`, by segment and stream."""
        for segment, stream, residuals, entered in self._by_segment(steps):
            by_stream = covariances.setdefault(segment, {})
            by_stream.setdefault(stream, Covariances.empty(entered[0].shape[-1])).add(residuals, entered)

    def _by_segment(self, steps: int) -> Iterator[tuple[str, str, list[torch.Tensor], list[torch.Tensor]]]:
        """Yield segment, stream, and the residuals and entry states of each step, for each trajectory."""
        for segment in self.segments:
            for stream in Streams._fields:
                entries, outputs = (self._rows.get((point, stream), {}) for point in _ends(segment))
                for weights in trajectories(outputs, self.combinations, steps):
                    entered = [mixed(entries, weights[step], step) for step in range(steps)]
                    residuals = [mixed(outputs, weights[step], step) - entered[step] for step in range(steps)]
                    yield segment.key, stream, residuals, entered

    def _watched(self, block: Block, enters: bool, leaves: bool) -> Callable[..., Any]:
        original = block.module.forward
        read = block.spec.reader(inspect.signature(original))

        @functools.wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if enters:
                self._note(_Point(block.index, False), read(args, kwargs))
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
                self._keys_values.setdefault((now.branch, name), []).append(some_rows(rows, ENOUGH_ROWS).float())
            return rows

        return forward

    def _note(self, point: _Point, streams: Streams) -> None:
        now = self._clock.now
        if now is None:
            return
        for stream, states in zip(Streams._fields, streams, strict=True):
            if states is not None:
                states = world.gather_cfg_branches(states)
                self._rows[point, stream][now.branch, now.step] = sampled(states, self._most_rows)


def record(
    runner: Runner,
    call: Call,
    config: FastCacheConfig,
    calibration: Calibration | None,
    segments: Sequence[Segment],
    pairs: Pairs | None = None,
) -> Recorder:
    """Run a call with the cache on, skipped blocks running as well; return the recorder that observed it."""
    recorder = Recorder(segments, Guidance(runner.host.transformer, runner.host.scheduler), pairs)
    with runner.enabled(config, calibration, recorder) as generate:
        generate(call)
    recorder.check(len(runner.sigmas()))
    return recorder


def _ends(segment: Segment) -> tuple[_Point, _Point]:
    return _Point(segment.blocks[0].index, False), _Point(segment.blocks[-1].index, True)
