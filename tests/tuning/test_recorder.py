"""Moments are taken of the states that guidance will combine."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fastcache_xdit.clock import Clock
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.host import guidance
from fastcache_xdit.host.guidance import Guidance
from fastcache_xdit.models.spec import BlockSpec
from fastcache_xdit.runtime.judge import ScheduledJudge
from fastcache_xdit.runtime.observer import Watched
from fastcache_xdit.runtime.rules import Rules
from fastcache_xdit.segments.segment import Block, Segment
from fastcache_xdit.tuning.recorder import Recorder
from fastcache_xdit.undo import Undo

SIGMAS = (0.9, 0.5)
Guide = Callable[[torch.Tensor], torch.Tensor]


class Doubling(nn.Module):
    """A block that doubles."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return 2 * hidden_states


def moments(calls: list[dict[str, torch.Tensor]], guide: Guide | None):
    """Moments of a request through two such blocks; each step's calls by branch, their outputs in one batch guided."""
    blocks = tuple(Block(f"blocks.{index}", index, Doubling(), BlockSpec()) for index in range(2))
    model, scheduler = nn.Sequential(*(block.module for block in blocks)), SimpleNamespace(step=lambda guided: guided)
    segment, clock = Segment(0, blocks), Clock()
    recorder, found = Recorder([segment], Guidance(model, scheduler if guide else None)), {}
    with Undo() as undo:
        recorder.attach(Watched(clock, [segment], [], ScheduledJudge(Rules(FastCacheConfig(test="paper")))), undo)
        for by_branch in calls:
            outputs = []
            for branch, hidden_states in by_branch.items():
                with clock.in_branch(branch), clock.tick():
                    outputs.append(model(hidden_states))
            if guide:
                scheduler.step(guide(torch.cat(outputs)))
    recorder.add_to(found, SIGMAS)
    return found[segment.key]["hidden_states"]


def by_hand(*trajectories: list[float]) -> torch.Tensor:
    """The Gram matrix of states H at each step, where R = 3 H."""
    rows = [torch.tensor([*(3 * state for state in states), *states, 1.0]).double() for states in trajectories]
    return sum(row.outer(row) for row in rows)


def guided(first: float, second: float) -> Guide:
    return lambda halves: first * halves.chunk(2)[0] + second * halves.chunk(2)[1]


# A batch of two at each step, or two calls of one; not multiples of each other, which would combine in many ways.
BATCHES = [torch.tensor(values).reshape(2, 1, 1) for values in ((1.0, 10.0), (20.0, 2.0))]
FUSED = [{"fused": batch} for batch in BATCHES]
APART = [dict(zip("ab", batch.split(1), strict=True)) for batch in BATCHES]
BRANCHES = [1.0, 20.0], [10.0, 2.0]


@pytest.mark.parametrize("calls", [FUSED, APART], ids=["halves of a batch", "calls of their own"])
@pytest.mark.parametrize("first, second", [(0, 1), (-2, 3), (3, -2)])
def test_branches_are_combined_as_guidance_does(calls, first, second):
    gram = moments(calls, guided(first, second)).gram[0]
    torch.testing.assert_close(gram, by_hand([first + 10 * second, 20 * first + 2 * second]), rtol=1e-5, atol=1e-5)


def test_weights_are_brought_to_a_sum_of_one():
    """Otherwise the constant of a fit would not be that of a branch."""
    gram = moments(FUSED, guided(-4, 6)).gram[0]
    torch.testing.assert_close(gram, by_hand([28.0, -34.0]), rtol=1e-5, atol=1e-5)


def test_a_difference_of_branches_is_not_combined():
    torch.testing.assert_close(moments(FUSED, guided(-1, 1)).gram[0], by_hand(*BRANCHES))


def test_without_a_second_branch_every_sample_counts():
    torch.testing.assert_close(moments(FUSED, guide=lambda outputs: outputs).gram[0], by_hand(*BRANCHES))


@pytest.mark.parametrize("calls", [FUSED, APART])
def test_without_a_scheduler_nothing_is_guessed(calls):
    torch.testing.assert_close(moments(calls, None).gram[0], by_hand(*BRANCHES))


def test_shapes_that_do_not_match_leave_branches_apart(caplog):
    guidance._tell.cache_clear()
    gram = moments(APART, guide=lambda outputs: outputs[..., 0]).gram[0]
    torch.testing.assert_close(gram, by_hand(*BRANCHES))
    assert "guidance remains unknown" in caplog.text
