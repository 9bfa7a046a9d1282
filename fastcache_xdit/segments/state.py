"""The states of one segment that are cached between steps, for one CFG branch and one patch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from fastcache_xdit.approx.linear import Past, Reference, StandIn, kept_dtype
from fastcache_xdit.decision.evidence import Track
from fastcache_xdit.models.spec import ENCODER, HIDDEN, Streams
from fastcache_xdit.segments.sums import ChangeSums


@dataclass
class SegmentState:
    """The cached states of one segment and what its decisions remember.

    Attributes:
        track: memory of the segment's decisions.
        references: by stream, the last computed steps, newest first. Entry states are copies, because a PipeFusion
            stage receives its input in a buffer that the next step overwrites.
        computed: all computed steps of the request, newest first.
        dtypes: by stream, what the model computes in, which references may be kept in another dtype than.
    """

    track: Track = field(default_factory=Track)
    references: dict[str, list[Reference]] = field(default_factory=dict)
    computed: tuple[int, ...] = ()
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)

    @property
    def order(self) -> int:
        """Number of computed steps that the stand-in can use."""
        return len(self.references.get(HIDDEN, ()))

    @property
    def reference(self) -> torch.Tensor | None:
        """Hidden states that entered at the last computed step, [B, N, D]; None before the first one."""
        references = self.references.get(HIDDEN)
        return references[0].entered if references else None

    @property
    def output(self) -> torch.Tensor:
        """Output hidden states of the last computed step, [B, N, D]; there must be one."""
        newest = self.references[HIDDEN][0]
        assert newest.entered is not None
        return newest.entered + newest.residual

    def holds(self, streams: Streams) -> bool:
        """Return whether there is a reference of the same size as these streams."""
        entered = {stream: getattr(streams, stream) for stream in self.references}
        kept = {stream: references[0].residual for stream, references in self.references.items()}
        return bool(kept) and all(kept[name].shape == part.shape for name, part in entered.items() if part is not None)

    def change(self, streams: Streams) -> ChangeSums:
        """Measure the change of entering states since the reference; infinite without a reference."""
        reference = self.reference
        if reference is None or not self.holds(streams):
            return ChangeSums.unknown(streams.hidden_states)
        return ChangeSums.measured(streams.hidden_states, reference)

    def stand_in(self, stand_in: StandIn, entered: Streams, step: int) -> Streams:
        """Estimate the segment's output at `step` without computing it: H plus the stand-in's R, for each stream."""
        hidden_states = self._estimate(stand_in, HIDDEN, entered.hidden_states, step)
        if entered.encoder_hidden_states is None or not self.references.get(ENCODER):
            return Streams(hidden_states)
        return Streams(hidden_states, self._estimate(stand_in, ENCODER, entered.encoder_hidden_states, step))

    def keep(
        self, stand_in: StandIn, entered: Streams, output: Streams, step: int, reference_dtype: str = "model"
    ) -> None:
        """Keep a computed step as the newest reference of each stream; a change of size drops the old ones."""
        if not self.holds(entered):
            self.references.clear()
            self.computed = ()
        self.computed = (step, *self.computed)
        for stream in Streams._fields:
            before, after = getattr(entered, stream), getattr(output, stream)
            if before is None or after is None:  # the last joint block of some models returns no text
                continue
            references = self.references.setdefault(stream, [])
            keeps_entry = stand_in.entered_kept or stream == HIDDEN  # the change is measured on hidden states
            self.dtypes[stream] = torch.result_type(before, after)
            kept = before.to(kept_dtype(reference_dtype, before.dtype), copy=True) if keeps_entry else None
            residual = _difference(after, before, kept_dtype(reference_dtype, self.dtypes[stream]))
            references.insert(0, Reference(step, kept, residual))
            del references[stand_in.references :]
            _forget_entered(references, max(stand_in.entered_kept, 1))

    def rebase(self, entered: Streams) -> None:
        """Measure the image residual of the newest reference from `entered`, [B, N, D], on."""
        newest, *older = self.references[HIDDEN]
        assert newest.entered is not None
        before = entered.hidden_states
        residual = _difference(newest.entered + newest.residual, before, newest.residual.dtype)
        kept = before.to(newest.entered.dtype, copy=True)
        self.references[HIDDEN] = [Reference(newest.step, kept, residual), *older]

    def rows(self, start: int, stop: int) -> SegmentState:
        """Return the state of one PipeFusion patch: views of rows [start, stop) of the image stream.

        All patches share the text stream.
        """
        image = [_rows(reference, start, stop) for reference in self.references.get(HIDDEN, ())]
        references = {stream: list(steps) for stream, steps in self.references.items()} | {HIDDEN: image}
        return SegmentState(replace(self.track), references if image else {}, self.computed, dict(self.dtypes))

    def bytes_held(self) -> int:
        """Return the bytes of the cached tensors."""
        references = [reference for steps in self.references.values() for reference in steps]
        tensors = [tensor for _, *states in references for tensor in states if tensor is not None]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def _estimate(self, stand_in: StandIn, stream: str, entered: torch.Tensor, step: int) -> torch.Tensor:
        residual = stand_in.residual(stream, entered, Past(step, self.references[stream], self.computed))
        return (entered + residual).to(self.dtypes[stream])


class WeighedState(SegmentState):
    """Keeps nothing, so that its segment is always computed, and notes what it would hold.

    Attributes:
        needed: bytes that it would hold as soon as it had all references.
    """

    needed = 0

    def keep(
        self, stand_in: StandIn, entered: Streams, output: Streams, step: int, reference_dtype: str = "model"
    ) -> None:
        """Note how large a reference is."""
        self.needed = 0
        for stream in Streams._fields:
            before, after = getattr(entered, stream), getattr(output, stream)
            if before is not None and after is not None:
                size = kept_dtype(reference_dtype, torch.result_type(before, after)).itemsize
                self.needed += tensors_kept(stand_in, stream) * after.numel() * size


def tensors_kept(stand_in: StandIn, stream: str) -> int:
    """Return how many tensors of a stream's size are kept once there are all references: residuals and entry states."""
    entered = max(stand_in.entered_kept, 1) if stream == HIDDEN else stand_in.entered_kept
    return stand_in.references + entered


def _difference(after: torch.Tensor, before: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return after - before, taken in the wider of their dtype and the given one, and rounded to the latter."""
    return (after.to(torch.promote_types(after.dtype, dtype)) - before).to(dtype)


def _rows(reference: Reference, start: int, stop: int) -> Reference:
    entered = None if reference.entered is None else reference.entered[:, start:stop]
    return Reference(reference.step, entered, reference.residual[:, start:stop])


def _forget_entered(references: list[Reference], count: int) -> None:
    references[count:] = [reference._replace(entered=None) for reference in references[count:]]
