"""What each token usually comes to: what motion-aware blending mixes into the stand-in (method.md 3)."""

from __future__ import annotations

import torch

from fastcache_xdit.clock import Tick


class Background:
    """Running mean of what a segment gave at the whole steps of a request, by CFG branch and patch.

    Args:
        blend: g of the static output g stand-in + (1 - g) background; at 1 nothing is kept.
    """

    def __init__(self, blend: float) -> None:
        self.blend = blend
        self._means: dict[tuple[str, int | None], tuple[int, torch.Tensor]] = {}

    def add(self, tick: Tick, output: torch.Tensor) -> None:
        """A whole step gave `output` [B, N, D]."""
        if self.blend == 1:
            return
        count, mean = self._known(tick) or (0, torch.zeros_like(output, dtype=torch.float32))
        mean = torch.lerp(mean, output.float(), 1 / (count + 1)) if mean.shape == output.shape else output.float()
        self._means[tick.branch, tick.patch] = count + 1, mean

    def blended(self, tick: Tick, guess: torch.Tensor) -> torch.Tensor:
        """What static tokens become, given the stand-in's `guess` [B, N, D]."""
        known = self._known(tick) if self.blend < 1 else None
        if known is None:
            return guess
        return torch.lerp(known[1], guess.float(), self.blend).to(guess.dtype)

    def clear(self) -> None:
        """Forget all means."""
        self._means.clear()

    def bytes_held(self) -> int:
        """Bytes of the means."""
        return sum(mean.numel() * mean.element_size() for _, mean in self._means.values())

    def _known(self, tick: Tick) -> tuple[int, torch.Tensor] | None:
        """Steps and mean of this branch and patch; a patch starts from its rows of the full sequence."""
        whole = self._means.get((tick.branch, None))
        rows = (whole[0], whole[1][:, slice(*tick.rows)]) if whole and tick.rows else whole
        return self._means.get((tick.branch, tick.patch), rows)
