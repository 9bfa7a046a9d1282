"""What one segment keeps between steps, for one CFG branch and one patch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from fastcache_xdit.approx.linear import REFERENCES, STAND_INS, Residual
from fastcache_xdit.decision.policy import Track
from fastcache_xdit.models.spec import Streams


@dataclass
class SegmentState:
    """References of one segment (consecutive blocks that are skipped together).

    Attributes:
        reference: hidden states that entered at the last computed step, [B, N, D]; a copy, because a PipeFusion stage
            receives its input in a buffer that the next step overwrites.
        residuals: per stream, newest first, what the segment added at the last computed steps.
        error: [B, 2] float64 sums (squared error that the stand-in would have made, squared output) of the last
            computed step, not yet exchanged; None where there is none.
    """

    track: Track
    reference: torch.Tensor | None = None
    residuals: dict[str, list[Residual]] = field(default_factory=dict)
    error: torch.Tensor | None = None

    @property
    def order(self) -> int:
        """How many computed steps the stand-in can look back to."""
        return len(self.residuals.get("hidden_states", ()))

    def change(self, streams: Streams) -> torch.Tensor:
        """[B, 2] float64 local sums: squared change since the reference, and squared reference."""
        hidden_states, reference = streams.hidden_states, self.reference
        if reference is None or reference.shape != hidden_states.shape:
            unknown = torch.tensor([[math.inf, 1.0]], dtype=torch.float64, device=hidden_states.device)
            return unknown.repeat(hidden_states.shape[0], 1)
        return torch.stack([energy(hidden_states - reference), energy(reference)], dim=1)

    def stand_in(self, name: str, entered: Streams, step: int) -> Streams:
        """The segment's output at `step` without computing it: H[in] + R of the stand-in, stream by stream."""
        hidden_states = entered.hidden_states + STAND_INS[name](self.residuals["hidden_states"], step)
        text = self.residuals.get("encoder_hidden_states")
        if entered.encoder_hidden_states is None or not text:
            return Streams(hidden_states)
        return Streams(hidden_states, entered.encoder_hidden_states + STAND_INS[name](text, step))

    def learn(self, name: str, entered: Streams, left: Streams, step: int) -> None:
        """Take a computed step as the newest reference; measure first what the stand-in would have made of it."""
        if self.reference is not None and self.reference.shape == entered.hidden_states.shape:
            guess = STAND_INS[name](self.residuals["hidden_states"], step)
            missed = left.hidden_states - entered.hidden_states - guess
            self.error = torch.stack([energy(missed), energy(left.hidden_states)], dim=1)
        else:
            self.residuals.clear()
        self.reference = entered.hidden_states.clone()
        for stream in Streams._fields:
            self._keep(name, stream, getattr(entered, stream), getattr(left, stream), step)

    def rows(self, start: int, stop: int) -> SegmentState:
        """This state seen by one PipeFusion patch: rows [start, stop) of the image stream, no copy.

        The text stream is shared by all patches.
        """
        image = [Residual(kept.step, kept.value[:, start:stop]) for kept in self.residuals.get("hidden_states", ())]
        reference = None if self.reference is None else self.reference[:, start:stop]
        residuals = {stream: list(kept) for stream, kept in self.residuals.items()} | {"hidden_states": image}
        return SegmentState(self.track.copy(), reference, residuals if image else {})

    def bytes_held(self) -> int:
        """Bytes of the cached tensors."""
        kept = [residual.value for stream in self.residuals.values() for residual in stream]
        tensors = kept if self.reference is None else [*kept, self.reference]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def _keep(self, name: str, stream: str, entered: torch.Tensor | None, left: torch.Tensor | None, step: int) -> None:
        if entered is None or left is None:  # the last joint block of some models returns no text
            return
        kept = self.residuals.setdefault(stream, [])
        kept.insert(0, Residual(step, left - entered))
        del kept[REFERENCES[name] :]


def energy(values: torch.Tensor) -> torch.Tensor:
    """Squared norm of each sample, [B, N, D] -> [B] float64; squares are summed in float32."""
    return values.float().square().flatten(1).sum(dim=1).double()
