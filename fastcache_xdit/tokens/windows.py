"""Windows of consecutive tokens; tokens are compared and merged only within a window, at a cost of O(N w)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn.functional import pad


class Windows(NamedTuple):
    """A split of `total` tokens into W windows of `size`, each merged to `keep` tokens; a shorter last one to fewer."""

    total: int
    size: int
    keep: int

    @classmethod
    def of(cls, total: int, size: int, ratio: float) -> Windows:
        """Split `total` tokens into windows of at most `size`; a fraction `ratio` of each remains, at least one token.

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
        """M, the number of tokens that remain; it depends on the sizes alone, so it is the same on every rank."""
        full, tail = divmod(self.total, self.size)
        return full * self.keep - (-tail * self.keep // self.size)

    def lengths(self, device: torch.device) -> torch.Tensor:
        """Return [W] int64: the number of tokens in each window."""
        return _portions(self.total, self.size, device)

    def keeps(self, device: torch.device) -> torch.Tensor:
        """Return [W] int64: the number of tokens that remain of each window."""
        return _portions(self.merged, self.keep, device)

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """Split tokens into windows, [B, N, ...] -> [B, W, w, ...], with zeros behind the last token."""
        padded = pad(x, (0, 0) * (x.ndim - 2) + (0, -self.total % self.size))
        return padded.unflatten(1, (-1, self.size))

    def join(self, x: torch.Tensor) -> torch.Tensor:
        """Join windows to a sequence, [B, W, w, ...] -> [B, N, ...]; undoes `split`."""
        return x.flatten(1, 2)[:, : self.total]


def _portions(total: int, size: int, device: torch.device) -> torch.Tensor:
    """Divide `total` into portions of `size` and a last one of what remains."""
    return (total - torch.arange(0, total, size, device=device)).clamp(max=size)
