"""Moments are taken of the states that guidance will combine."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastcache_xdit.clock import Clock
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.models.spec import BlockSpec
from fastcache_xdit.runtime.judge import ScheduledJudge
from fastcache_xdit.runtime.observer import Watched
from fastcache_xdit.runtime.rules import Rules
from fastcache_xdit.segments.segment import Block, Segment
from fastcache_xdit.tuning.recorder import Recorder
from fastcache_xdit.undo import Undo

SIGMAS = (0.9, 0.5)


class Doubling(nn.Module):
    """A block that doubles."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return 2 * hidden_states


def moments(states: list[torch.Tensor], samples: int, guidance: float):
    """Moments of a request through two such blocks, and what they must be by hand: H and R = 3 H."""
    blocks = tuple(Block(f"blocks.{index}", index, Doubling(), BlockSpec()) for index in range(2))
    segment, clock = Segment(0, blocks), Clock()
    recorder, found = Recorder([segment], samples, guidance), {}
    with Undo() as undo:
        recorder.attach(Watched(clock, [segment], [], ScheduledJudge(Rules(FastCacheConfig(test="paper")))), undo)
        for hidden_states in states:
            with clock.tick():
                blocks[1].module(blocks[0].module(hidden_states))
    recorder.add_to(found, SIGMAS)
    return found[segment.key]["hidden_states"]


@pytest.mark.parametrize("guidance, expected", [(1.0, [10.0, 20.0]), (3.0, [28.0, 56.0])])
def test_branches_are_combined_as_guidance_will(guidance, expected):
    # uncond 1 and cond 10 at the first step, twice that at the second: u + g (c - u)
    first = torch.tensor([1.0, 10.0]).reshape(2, 1, 1)
    gram = moments([first, 2 * first], samples=1, guidance=guidance).gram[0]
    states = torch.tensor([3 * expected[0], 3 * expected[1], *expected, 1.0], dtype=torch.float64)
    torch.testing.assert_close(gram, states.outer(states))


def test_without_a_second_branch_every_sample_counts():
    first = torch.tensor([1.0, 10.0]).reshape(2, 1, 1)
    gram = moments([first, first], samples=2, guidance=3.0).gram[0]
    assert gram[2, 2].item() == 101.0 and gram[4, 4].item() == 2.0
