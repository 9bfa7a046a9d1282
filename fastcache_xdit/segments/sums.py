"""The sums that decisions are made from; those of ranks that share a sequence are added up."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch


class ChangeSums(NamedTuple):
    """Sums that measure how far the entry states of each sample have moved since the reference (method.md 3).

    s[i] is the squared change of token i. All are float64, [B] or with more dimensions in front.

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
        """Measure hidden states [B, ..., D] against a reference of the same shape."""
        saliency = (hidden_states - reference).float().square().sum(dim=-1).flatten(1)
        samples, tokens = saliency.shape
        count = torch.full((samples,), tokens, dtype=torch.float64, device=hidden_states.device)
        return cls(saliency.sum(dim=1).double(), energy(reference), saliency.square().sum(dim=1).double(), count)

    @classmethod
    def unknown(cls, hidden_states: torch.Tensor) -> ChangeSums:
        """Return an infinite change for hidden states [B, ..., D] without a reference."""
        samples, tokens = len(hidden_states), hidden_states.shape[1:-1].numel()
        rows = (math.inf, 1.0, math.inf, tokens)  # filled in on the device, as copying them there would wait for it
        return cls(*(hidden_states.new_full((samples,), value, dtype=torch.float64) for value in rows))

    @classmethod
    def unpacked(cls, columns: torch.Tensor) -> ChangeSums:
        """Return the sums that `packed` made into columns, [..., 4]."""
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
        """Relative variance of s over the tokens; 0 if nothing moved or there is no reference."""
        return (self.tokens * self.squared_saliency / self.change.square() - 1).nan_to_num(0.0, 0.0)


class ErrorSums(NamedTuple):
    """Sums that measure the error of a stand-in at a computed step, float64.

    Attributes:
        missed: squared norm of the error.
        output: squared norm of the true output.
    """

    missed: torch.Tensor
    output: torch.Tensor

    @classmethod
    def measured(cls, output: torch.Tensor, estimate: torch.Tensor) -> ErrorSums:
        """Measure the estimate of a stand-in against the true output, both [B, ...]."""
        return cls(energy(output - estimate), energy(output))

    def packed(self) -> torch.Tensor:
        """Return the sums as columns, [..., 2], for a message."""
        return torch.stack(tuple(self), dim=-1)

    @property
    def relative(self) -> torch.Tensor:
        """Norm of the error over the norm of the output."""
        return (self.missed / self.output).sqrt()


def energy(values: torch.Tensor) -> torch.Tensor:
    """Return the squared norm of each sample, [B, ...] -> [B] float64, summed in float32."""
    return values.float().square().flatten(1).sum(dim=1).double()
