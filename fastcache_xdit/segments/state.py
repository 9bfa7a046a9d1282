"""What one segment keeps between steps, for one CFG branch and one patch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from fastcache_xdit.approx.linear import Past, Reference, StandIn
from fastcache_xdit.decision.policy import Track
from fastcache_xdit.models.spec import ENCODER, HIDDEN, Streams

CHANGE_SUMS = 4  # columns of `SegmentState.change`


@dataclass
class SegmentState:
    """References of one segment (consecutive blocks that are skipped together).

    Attributes:
        references: per stream, newest first, the last computed steps; entry states are copies, because a PipeFusion
            stage receives its input in a buffer that the next step overwrites.
        computed: all computed steps, newest first.
        error: [B, 2] float64 sums (squared error that the stand-in would have made, squared output) of the last
            computed step, not yet exchanged; None where there is none.
    """

    track: Track
    references: dict[str, list[Reference]] = field(default_factory=dict)
    computed: tuple[int, ...] = ()
    error: torch.Tensor | None = None

    @property
    def order(self) -> int:
        """How many computed steps the stand-in can look back to."""
        return len(self.references.get(HIDDEN, ()))

    @property
    def reference(self) -> torch.Tensor | None:
        """Hidden states that entered at the last computed step, [B, N, D]."""
        kept = self.references.get(HIDDEN)
        return kept[0].entered if kept else None

    @property
    def output(self) -> torch.Tensor:
        """Hidden states that left at the last computed step, [B, N, D]; there must be one."""
        newest = self.references[HIDDEN][0]
        assert newest.entered is not None
        return newest.entered + newest.residual

    def holds(self, streams: Streams) -> bool:
        """Whether there is a reference for states of this size."""
        reference = self.reference
        return reference is not None and reference.shape == streams.hidden_states.shape

    def change(self, streams: Streams) -> torch.Tensor:
        """[B, 4] float64 local sums: saliencies s, squared reference, s^2, and tokens.

        s[i] is the squared change of token i since the reference (method.md 3).
        """
        hidden_states, reference = streams.hidden_states, self.reference
        samples, tokens = hidden_states.shape[:2]
        if reference is None or not self.holds(streams):
            unknown = torch.tensor([[math.inf, 1.0, math.inf, tokens]], dtype=torch.float64)
            return unknown.repeat(samples, 1).to(hidden_states.device)
        saliency = (hidden_states - reference).float().square().sum(dim=2)
        count = torch.full((samples,), tokens, dtype=torch.float64, device=hidden_states.device)
        sums = saliency.sum(dim=1).double(), energy(reference), saliency.square().sum(dim=1).double(), count
        return torch.stack(sums, dim=1)

    def stand_in(self, stand_in: StandIn, entered: Streams, step: int) -> Streams:
        """The segment's output at `step` without computing it: H[in] + R of the stand-in, stream by stream."""
        hidden_states = self._guess(stand_in, HIDDEN, entered.hidden_states, step)
        if entered.encoder_hidden_states is None or not self.references.get(ENCODER):
            return Streams(hidden_states)
        return Streams(hidden_states, self._guess(stand_in, ENCODER, entered.encoder_hidden_states, step))

    def learn(self, stand_in: StandIn, entered: Streams, left: Streams, step: int) -> None:
        """Measure what the stand-in would have made of a computed step, then keep the step as the newest reference."""
        if self.holds(entered):
            missed = left.hidden_states - self._guess(stand_in, HIDDEN, entered.hidden_states, step)
            self.error = torch.stack([energy(missed), energy(left.hidden_states)], dim=1)
        self.keep(stand_in, entered, left, step)

    def keep(self, stand_in: StandIn, entered: Streams, left: Streams, step: int) -> None:
        """Take a computed step as the newest reference of each stream; another size forgets the old ones."""
        if not self.holds(entered):
            self.references.clear()
            self.computed = ()
        self.computed = (step, *self.computed)
        for stream in Streams._fields:
            into, out = getattr(entered, stream), getattr(left, stream)
            if into is None or out is None:  # the last joint block of some models returns no text
                continue
            kept = self.references.setdefault(stream, [])
            wanted = stand_in.entered_kept or stream == HIDDEN  # the change is measured on hidden states
            kept.insert(0, Reference(step, into.clone() if wanted else None, out - into))
            del kept[stand_in.references :]
            _forget_entered(kept, max(stand_in.entered_kept, 1))

    def rebase(self, entered: Streams) -> None:
        """Count what the newest step added to the image stream from `entered` on, [B, N, D]."""
        newest, *older = self.references[HIDDEN]
        assert newest.entered is not None
        added = newest.entered + newest.residual - entered.hidden_states
        self.references[HIDDEN] = [Reference(newest.step, entered.hidden_states.clone(), added), *older]

    def rows(self, start: int, stop: int) -> SegmentState:
        """This state seen by one PipeFusion patch: rows [start, stop) of the image stream, no copy.

        The text stream is shared by all patches.
        """
        image = [_rows(reference, start, stop) for reference in self.references.get(HIDDEN, ())]
        references = {stream: list(kept) for stream, kept in self.references.items()} | {HIDDEN: image}
        return SegmentState(self.track.copy(), references if image else {}, self.computed)

    def bytes_held(self) -> int:
        """Bytes of the cached tensors."""
        kept = [reference for stream in self.references.values() for reference in stream]
        tensors = [tensor for each in kept for tensor in (each.entered, each.residual) if tensor is not None]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def _guess(self, stand_in: StandIn, stream: str, entered: torch.Tensor, step: int) -> torch.Tensor:
        return entered + stand_in.residual(stream, entered, Past(step, self.references[stream], self.computed))


def energy(values: torch.Tensor) -> torch.Tensor:
    """Squared norm of each sample, [B, N, D] -> [B] float64; squares are summed in float32."""
    return values.float().square().flatten(1).sum(dim=1).double()


def _rows(reference: Reference, start: int, stop: int) -> Reference:
    entered = None if reference.entered is None else reference.entered[:, start:stop]
    return Reference(reference.step, entered, reference.residual[:, start:stop])


def _forget_entered(kept: list[Reference], count: int) -> None:
    kept[count:] = [reference._replace(entered=None) for reference in kept[count:]]
