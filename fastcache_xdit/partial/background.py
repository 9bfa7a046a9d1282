"""The mean output of each token, which motion-aware blending mixes into the estimate (method.md 3)."""

from __future__ import annotations

import torch

from fastcache_xdit.clock import Tick


class Background:
    """Running mean of a segment's output over the full steps of a request, for each CFG branch and patch.

    Args:
        blend: weight g of the blended output, g estimate + (1 - g) mean; at 1 nothing is stored.
    """

    def __init__(self, blend: float) -> None:
        self.blend = blend
        self._means: dict[tuple[str, int | None], tuple[int, torch.Tensor]] = {}

    def add(self, tick: Tick, output: torch.Tensor) -> None:
        """Add the output [B, N, D] of a full step to the mean."""
        if self.blend == 1:
            return
        count, mean = self._mean_at(tick) or (0, torch.zeros_like(output, dtype=torch.float32))
        mean = torch.lerp(mean, output.float(), 1 / (count + 1)) if mean.shape == output.shape else output.float()
        self._means[tick.branch, tick.patch] = count + 1, mean

    def blended(self, tick: Tick, estimate: torch.Tensor) -> torch.Tensor:
        """Return the output of static tokens: the stand-in's estimate [B, N, D] blended with the mean."""
        count_and_mean = self._mean_at(tick) if self.blend < 1 else None
        if count_and_mean is None:
            return estimate
        return torch.lerp(count_and_mean[1], estimate.float(), self.blend).to(estimate.dtype)

    def clear(self) -> None:
        """Forget all means."""
        self._means.clear()

    def bytes_held(self) -> int:
        """Return the bytes of the means."""
        return sum(mean.numel() * mean.element_size() for _, mean in self._means.values())

    def _mean_at(self, tick: Tick) -> tuple[int, torch.Tensor] | None:
        """Return count and mean of this branch and patch; a patch starts from its rows of the full sequence."""
        full = self._means.get((tick.branch, None))
        rows = (full[0], full[1][:, slice(*tick.rows)]) if full and tick.rows else full
        return self._means.get((tick.branch, tick.patch), rows)
