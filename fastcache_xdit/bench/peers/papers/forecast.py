"""What published caches have in common: a skipped value is a weighted sum of earlier ones of the same branch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

# From the steps whose values are kept, oldest first, and a skipped step: a weight for each of them.
Weights = Callable[[Sequence[int], int], Sequence[float]]


def reuse(kept: Sequence[int], step: int) -> list[float]:
    """Return weights that hand the newest value on."""
    return [0.0] * (len(kept) - 1) + [1.0]


@dataclass
class History:
    """Earlier values of one thing, of one branch of guidance in one request: tensors, or tuples of tensors.

    Attributes:
        weights: how a skipped step's value is made of those that are kept.
        length: how many of the newest are kept; None for all.
        with_estimates: estimates are kept like values that were computed.
    """

    weights: Weights
    length: int | None = None
    with_estimates: bool = False
    steps: list[int] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)

    def keep(self, step: int, value: Any) -> None:
        """Keep a computed value."""
        self.steps.append(step)
        self.values.append(value)
        if self.length is not None and len(self.steps) > self.length:
            del self.steps[0], self.values[0]

    def estimate(self, step: int) -> Any:
        """Return what stands in for the value at a skipped step."""
        value = _sum(self.weights(self.steps, step), self.values)
        if self.with_estimates:
            self.keep(step, value)
        return value


def _sum(weights: Sequence[float], values: Sequence[Any]) -> Any:
    if isinstance(values[0], tuple):
        return tuple(_sum(weights, parts) for parts in zip(*values, strict=True))
    terms = [value if weight == 1 else weight * value for weight, value in zip(weights, values, strict=True) if weight]
    return sum(terms[1:], start=terms[0])
