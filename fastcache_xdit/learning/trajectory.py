"""What one request gave to its scheduler and got back, on some rows of the latents."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fastcache_xdit.approx.moments import Moments
from fastcache_xdit.clock import Tick

MOST_ROWS = 4096  # of one request and step on one rank, evenly spaced: plenty to fit three weights for each channel


class Trajectory:
    """Records outputs and latents of one request; a `runtime.session.Watch`.

    Rows are chosen by their place in the full sequence, so that those of PipeFusion patches are the same ones. They
    take `MOST_ROWS` times the channels times 8 bytes for each step: 59 MB for FLUX.1 in 28 steps, whatever the size of
    the picture, and 26 MB for Wan 2.1 in 50, whatever its length.
    """

    def __init__(self) -> None:
        self._outputs: dict[int, dict[int, torch.Tensor]] = {}  # by step and patch, -1 for the full sequence
        self._latents: dict[int, dict[int, torch.Tensor]] = {}
        self._first: dict[int, torch.Tensor] = {}  # latents before the first step, by patch
        self._stride = 0

    def __call__(self, tick: Tick, output: torch.Tensor, before: torch.Tensor, latents: torch.Tensor) -> None:
        """Record what the scheduler was given and what it returned."""
        patch = -1 if tick.patch is None else tick.patch
        if not self._outputs or self._outputs.keys() == {tick.step}:
            self._first[patch] = self._rows(before, tick)
        self._outputs.setdefault(tick.step, {})[patch] = self._rows(output, tick)
        self._latents.setdefault(tick.step, {})[patch] = self._rows(latents, tick)

    @property
    def steps(self) -> int:
        """Number of steps so far; 0 on ranks whose stage has no scheduler."""
        return len(self._outputs)

    @property
    def samples(self) -> int:
        """Size of the batch; of all rows, those of a sample lie together."""
        return len(next(iter(self._first.values())))

    def outputs(self) -> list[torch.Tensor]:
        """Return the outputs of each step, [n, C] float32."""
        return [_joined(self._outputs[step]) for step in sorted(self._outputs)]

    def latents(self) -> list[torch.Tensor]:
        """Return the latents behind each step, [n, C] float32."""
        return [_joined(self._latents[step]) for step in sorted(self._latents)]

    def entered(self) -> list[torch.Tensor]:
        """Return the latents before each step, [n, C] float32."""
        return [_joined(self._first), *self.latents()[:-1]]

    def _rows(self, values: torch.Tensor, tick: Tick) -> torch.Tensor:
        """[B, N, C] or [B, C, ...] -> [B, n, C]."""
        rows = values.detach() if values.ndim == 3 else values.detach().movedim(1, -1).flatten(1, -2)
        if not self._stride:
            self._stride = -(-rows.shape[0] * rows.shape[1] // MOST_ROWS)
        start = tick.rows[0] * rows.shape[1] // (tick.rows[1] - tick.rows[0]) if tick.rows else 0
        return rows[:, -start % self._stride :: self._stride].float().clone()


def moments_of(
    outputs: Sequence[torch.Tensor],
    sigmas: Sequence[float],
    entered: Sequence[torch.Tensor] | None = None,
    weights: torch.Tensor | None = None,
) -> Moments:
    """Return the moments of one request.

    Args:
        outputs: of each step, [n, C].
        sigmas: noise level of each step.
        entered: the latents before each step, [n, C]; None to know nothing of them.
        weights: of the samples, [B]; None for 1.
    """
    moments = Moments.empty(sigmas, outputs[0].shape[-1])
    moments.add(outputs, entered or [torch.zeros_like(outputs[0])] * len(outputs), weights)
    return moments


def _joined(parts: dict[int, torch.Tensor]) -> torch.Tensor:
    return torch.cat([parts[patch] for patch in sorted(parts)], dim=1).flatten(0, 1)
