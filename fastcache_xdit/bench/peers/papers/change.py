"""The rule of EasyCache and LazyCache: how far the output has moved, from how far the input has."""

from __future__ import annotations

import torch


class AccumulatedChange:
    """Add up the relative change that the output is expected to make; skip while the sum is below a threshold.

    The output is taken to move at the rate, against the input, that it had between the last two computed steps.

    Args:
        threshold: of the sum.
        from_computed: each step adds the input's change since the last computed step, not since the step before.
    """

    def __init__(self, threshold: float, from_computed: bool) -> None:
        self._threshold, self._from_computed = threshold, from_computed
        self.begin()

    def begin(self) -> None:
        """Begin a request."""
        self._sum = 0.0
        self._rate: float | None = None
        self._compared: torch.Tensor | None = None
        self._last: tuple[torch.Tensor, torch.Tensor] | None = None  # input and output of the last computed step

    def may_skip(self, states: torch.Tensor, forced: bool) -> bool:
        """Return whether a step with this input may be skipped; not where it is forced to be computed."""
        if self._last and self._rate is not None and self._compared is not None:
            self._sum += self._rate * _size(states - self._compared) / _size(self._last[1])
        can_tell = self._rate is not None and not forced
        may_skip = can_tell and self._sum < self._threshold
        self._sum *= may_skip
        if not self._from_computed:
            self._compared = states
        return may_skip

    def computed(self, states: torch.Tensor, output: torch.Tensor) -> None:
        """Note the input and output of a computed step."""
        if self._last:
            self._rate = _size(output - self._last[1]) / _size(states - self._last[0])
        self._last = states, output
        if self._from_computed:
            self._compared = states


def _size(tensor: torch.Tensor) -> float:
    return tensor.abs().mean().item()
