"""Sums add up in rank order per branch, and differing stamps are told with names."""

import pytest
import torch

from fastcache_xdit.errors import RankDivergenceError
from fastcache_xdit.parallel.consensus import Solo, add_by_branch, check_stamps


def test_ranks_of_a_branch_add_up_and_branches_stack():
    gathered = torch.tensor([[[1.0, 2.0]], [[10.0, 20.0]], [[3.0, 4.0]], [[30.0, 40.0]]], dtype=torch.float64)
    assert add_by_branch(gathered, [0, 0, 1, 1]).tolist() == [[11.0, 22.0], [33.0, 44.0]]
    assert add_by_branch(gathered, [0, 1, 0, 1]).tolist() == [[4.0, 6.0], [40.0, 60.0]]


def test_addition_is_in_rank_order_whatever_the_magnitudes():
    values = [1e16, 1.0, -1e16, 1.0]  # floating-point addition does not commute over these
    gathered = torch.tensor(values, dtype=torch.float64).reshape(4, 1, 1)
    assert add_by_branch(gathered, [0] * 4).item() == ((1e16 + 1.0) - 1e16) + 1.0


def test_solo_hands_the_sums_back():
    sums = torch.rand(2, 4, dtype=torch.float64)
    assert torch.equal(Solo().agree(sums, stamp=1, place=""), sums)


def test_equal_stamps_pass_and_others_name_the_ranks():
    check_stamps([5.0, 5.0], [0, 1], "step 3")
    with pytest.raises(RankDivergenceError, match=r"ranks \[0, 4\] and ranks \[1\] at step 3, block a.1"):
        check_stamps([5.0, 6.0, 5.0], [0, 1, 4], "step 3, block a.1")
