"""Motion-aware blending: the running mean by hand, and its rows under PipeFusion."""

import pytest
import torch

from fastcache_xdit.clock import Tick
from fastcache_xdit.partial.background import Background

WHOLE = Tick("fused", None, 0, 8)


def test_the_mean_of_whole_steps_by_hand():
    background = Background(0.75)
    estimate = torch.full((1, 4, 2), 8.0)
    assert background.blended(WHOLE, estimate) is estimate, "nothing is known yet"
    for value in (1.0, 3.0, 8.0):
        background.add(WHOLE, torch.full((1, 4, 2), value))
    assert torch.equal(background.blended(WHOLE, estimate), torch.full((1, 4, 2), 0.75 * 8 + 0.25 * 4))
    assert background.blended(WHOLE, estimate.bfloat16()).dtype == torch.bfloat16
    assert background.bytes_held() == 8 * 4
    background.clear()
    assert background.blended(WHOLE, estimate) is estimate and background.bytes_held() == 0


def test_a_patch_starts_from_its_rows_and_goes_on_alone():
    background, patch = Background(0.5), Tick("fused", 1, 1, 8, (2, 4))
    background.add(WHOLE, torch.arange(4.0).view(1, 4, 1))
    assert background.blended(patch, torch.zeros(1, 2, 1)).flatten().tolist() == [1.0, 1.5]
    background.add(patch, torch.tensor([[[4.0], [5.0]]]))
    assert background.blended(patch, torch.zeros(1, 2, 1)).flatten().tolist() == [1.5, 2.0]
    assert background.blended(WHOLE, torch.zeros(1, 4, 1)).flatten().tolist() == [0.0, 0.5, 1.0, 1.5]


def test_branches_stand_apart_and_another_size_starts_anew():
    background, other = Background(0.5), Tick("cond", None, 0, 8)
    background.add(WHOLE, torch.ones(1, 4, 1))
    assert background.blended(other, torch.zeros(1, 4, 1)).sum() == 0
    background.add(WHOLE, torch.full((1, 2, 1), 6.0))
    assert background.blended(WHOLE, torch.zeros(1, 2, 1)).flatten().tolist() == pytest.approx([3.0, 3.0])


def test_the_stand_in_alone_keeps_nothing():
    background = Background(1.0)
    background.add(WHOLE, torch.ones(1, 4, 1))
    assert background.bytes_held() == 0
