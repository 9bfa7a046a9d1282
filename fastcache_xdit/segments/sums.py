"""The sums that decisions are made from, by name: local ones add up over the ranks that hold a sequence together."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch


class ChangeSums(NamedTuple):
    """How far the entry states of each sample moved since the reference; s[i] is token i's squared change.

    All float64, [B] or with more dimensions in front (method.md 3).

    Attributes:
        change: sum of s.
        reference: squared norm of the reference.
        squared_saliency: sum of s^2.
        tokens: number of tokens.
    """

    change: torch.Tensor
    reference: torch.Tensor
    squared_saliency: torch.Tensor
    tokens: torch.Tensor

    @classmethod
    def measured(cls, hidden_states: torch.Tensor, reference: torch.Tensor) -> ChangeSums:
        """Measure [B, N, D] against a reference of the same shape."""
        samples, tokens = hidden_states.shape[:2]
        saliency = (hidden_states - reference).float().square().sum(dim=2)
        count = torch.full((samples,), tokens, dtype=torch.float64, device=hidden_states.device)
        return cls(saliency.sum(dim=1).double(), energy(reference), saliency.square().sum(dim=1).double(), count)

    @classmethod
    def unknown(cls, hidden_states: torch.Tensor) -> ChangeSums:
        """Return an infinite change of [B, N, D]: that of a rank without a reference."""
        samples, tokens = hidden_states.shape[:2]
        row = torch.tensor([math.inf, 1.0, math.inf, tokens], dtype=torch.float64, device=hidden_states.device)
        return cls(*row[:, None].repeat(1, samples))

    @classmethod
    def unpacked(cls, columns: torch.Tensor) -> ChangeSums:
        """Undo `packed`."""
        return cls(*columns.unbind(-1))

    def packed(self) -> torch.Tensor:
        """Return the sums as columns, [..., 4], for a message."""
        return torch.stack(tuple(self), dim=-1)

    @property
    def relative(self) -> torch.Tensor:
        """Norm of the change over the norm of the reference."""
        return (self.change / self.reference).sqrt()

    @property
    def motion(self) -> torch.Tensor:
        """Relative variance of s over the tokens; 0 where nothing moved or no reference is known."""
        return (self.tokens * self.squared_saliency / self.change.square() - 1).nan_to_num(0.0, 0.0)


class ErrorSums(NamedTuple):
    """What a stand-in missed of a computed step, float64.

    Attributes:
        missed: squared norm of the error.
        output: squared norm of the segment's output; 0 where nothing was measured.
    """

    missed: torch.Tensor
    output: torch.Tensor

    @classmethod
    def measured(cls, output: torch.Tensor, estimate: torch.Tensor) -> ErrorSums:
        """Measure a stand-in's estimate against the output, each [B, N, D]."""
        return cls(energy(output - estimate), energy(output))

    @classmethod
    def none(cls, hidden_states: torch.Tensor) -> ErrorSums:
        """Return sums of nothing, for the samples of [B, N, D]; `relative` is NaN."""
        zeros = torch.zeros(hidden_states.shape[0], dtype=torch.float64, device=hidden_states.device)
        return cls(zeros, zeros)

    def packed(self) -> torch.Tensor:
        """Return the sums as columns, [..., 2], for a message."""
        return torch.stack(tuple(self), dim=-1)

    @property
    def relative(self) -> torch.Tensor:
        """Norm of the error over the norm of the output."""
        return (self.missed / self.output).sqrt()


def energy(values: torch.Tensor) -> torch.Tensor:
    """Return the squared norm of each sample, [B, N, D] -> [B] float64; squares are summed in float32."""
    return values.float().square().flatten(1).sum(dim=1).double()
