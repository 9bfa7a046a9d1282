"""How alike two runs of a request are, sample by sample."""

from __future__ import annotations

import pytest
import torch

from fastcache_xdit.clock import FUSED, Tick
from fastcache_xdit.learning.likeness import latents_decibels
from fastcache_xdit.learning.ranks import Ranks
from fastcache_xdit.learning.trajectory import Trajectory, moments_of
from fastcache_xdit.parallel.topology import Topology

SIGMAS = (1.0, 0.5)


def trajectory(*latents: torch.Tensor) -> Trajectory:
    watched = Trajectory()
    for step, values in enumerate(latents):
        watched(Tick(FUSED, None, step, len(latents)), values, values, values)
    return watched


@pytest.mark.parametrize("shape", [(2, 16, 4), (2, 4, 4, 4), (2, 4, 3, 4, 4), (2, 5000, 4)])
def test_each_sample_of_a_batch_is_as_near_as_by_itself(shape):
    wanted, ranks = torch.randn(shape), Ranks(Topology())
    found = wanted * torch.tensor([0.9, 0.999]).view(-1, *[1] * (len(shape) - 1))
    together = latents_decibels(trajectory(found), trajectory(wanted), ranks)
    assert together.tolist() == pytest.approx([20, 60], abs=0.01)
    if found[0].numel() < 4096:  # of larger ones other rows are kept
        alone = [
            latents_decibels(*map(trajectory, pair), ranks)
            for pair in zip(found[:, None], wanted[:, None], strict=True)
        ]
        torch.testing.assert_close(together, torch.cat(alone))


def test_a_sample_of_weight_three_counts_as_three_of_them():
    first, second = torch.randn(2, 2, 8, 4)  # two steps each
    weighted = moments_of(
        [torch.cat(pair) for pair in zip(first, second, strict=True)], SIGMAS, weights=torch.tensor([1.0, 3.0]).double()
    )
    repeated = moments_of([torch.cat([one, *[other] * 3]) for one, other in zip(first, second, strict=True)], SIGMAS)
    torch.testing.assert_close(weighted.gram, repeated.gram)
