"""Windows of consecutive tokens: tokens are compared and merged only within one, so that the cost is O(N w)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn.functional import pad


class Windows(NamedTuple):
    """`total` tokens in W windows of `size`, each merged to `keep` tokens; a shorter last window to its share."""

    total: int
    size: int
    keep: int

    @classmethod
    def of(cls, total: int, size: int, ratio: float) -> Windows:
        """Windows of `size` tokens, or one if there are fewer tokens, of which about `ratio` remain, at least one.

        Raises:
            ValueError: a size below 1 or a ratio outside (0, 1].
        """
        if size < 1:
            raise ValueError(f"a window of {size} tokens holds nothing: give at least 1")
        if not 0 < ratio <= 1:
            raise ValueError(f"cannot merge to {ratio} of the tokens: give a ratio above 0, and at most 1")
        size = min(size, total)
        return cls(total, size, max(1, round(ratio * size)))

    @property
    def merged(self) -> int:
        """M: how many tokens remain; it follows from the sizes alone, so it is the same on every rank."""
        full, tail = divmod(self.total, self.size)
        return full * self.keep - (-tail * self.keep // self.size)

    def lengths(self, device: torch.device) -> torch.Tensor:
        """[W] int64: how many tokens each window holds."""
        return _portions(self.total, self.size, device)

    def keeps(self, device: torch.device) -> torch.Tensor:
        """[W] int64: how many tokens remain of each window."""
        return _portions(self.merged, self.keep, device)

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """[B, N, ...] -> [B, W, w, ...], with zeros behind the last token."""
        padded = pad(x, (0, 0) * (x.ndim - 2) + (0, -self.total % self.size))
        return padded.unflatten(1, (-1, self.size))

    def join(self, x: torch.Tensor) -> torch.Tensor:
        """[B, W, w, ...] -> [B, N, ...]: undoes `split`."""
        return x.flatten(1, 2)[:, : self.total]


def _portions(total: int, each: int, device: torch.device) -> torch.Tensor:
    """`total` in portions of `each`, the last one what is left."""
    return (total - torch.arange(0, total, each, device=device)).clamp(max=each)
