"""Every pipeline of the table with the cache: nothing is bypassed, steps are skipped as planned, nothing stays."""

from __future__ import annotations

import diffusers
import pytest
import torch

from fastcache_xdit import FastCacheConfig, fastcache
from fastcache_xdit.host.diffusers import transformer_of
from fastcache_xdit.models.streams import tensors_in
from tests.models.pipelines import LEFT_OUT, TASKS

MASK = "110101"
STEPS, SKIPPED = len(MASK), MASK.count("0")
BUDGET = 0.5
CLOSE = 0.5  # relative error that a request may have whose steps were skipped: random models are no smooth ones


class Made:
    """A pipeline of the table, and how often one request calls its transformer."""

    def __init__(self, task) -> None:
        self.task, self.pipe, self.calls = task, task.build(), 0
        with transformer_of(self.pipe).register_forward_hook(self._called):
            self.whole = self.generate()

    def generate(self, seed: int = 0) -> torch.Tensor:
        torch.manual_seed(seed)  # of what pipelines draw without the generator that they are given
        generator = torch.Generator().manual_seed(seed)
        call = {"num_inference_steps": STEPS, "output_type": "latent", **self.task.call(), "generator": generator}
        return torch.cat([part.float().flatten() for part in tensors_in(self.pipe(**call))])

    def cached(self, **options):
        return fastcache(self.pipe, FastCacheConfig.from_dict({"learn": 0, **options}))

    def alone(self, seed: int, **options) -> torch.Tensor:
        with self.cached(**options):
            return self.generate(seed)

    def _called(self, *_) -> None:
        self.calls += 1


@pytest.fixture(scope="module", params=TASKS, ids=lambda task: task.name)
def made(request):
    return Made(request.param)


def check_cached(made, computed, **options):
    """Two requests: `computed` of their steps are computed, and each is what it would be alone."""
    with made.cached(**options) as handle:
        first, second = made.generate(0), made.generate(1)
        counters = handle.report().counters
    assert counters.bypassed_calls == 0
    assert counters.transformer_calls == 2 * made.calls
    assert min(counters.computed.values()) == 2 * made.calls * computed // STEPS
    assert max(counters.approximated.values()) == 2 * made.calls * (STEPS - computed) // STEPS
    assert first.isfinite().all() and not torch.equal(first, second)
    assert 0 < (first - made.whole).norm() / made.whole.norm() < CLOSE
    assert torch.equal(second, made.alone(1, **options))
    return handle


def test_with_the_whole_budget_every_bit_is_the_same(made):
    assert made.whole.isfinite().all() and made.calls % STEPS == 0
    with made.cached(budget=1) as handle:
        assert torch.equal(made.generate(), made.whole)
    counters = handle.report().counters
    assert (counters.bypassed_calls, counters.approximated.total()) == (0, 0)


def test_the_output_is_stood_in_for_in_half_of_the_steps(made):
    handle = check_cached(made, round(BUDGET * STEPS), budget=BUDGET)
    assert handle.report().counters.compute_ratio() == BUDGET


def test_blocks_are_skipped_as_scheduled(made):
    check_cached(made, STEPS - SKIPPED, schedule={STEPS: MASK}, warmup_steps=1, cooldown_steps=0)


def test_disabling_restores_it(made):
    assert torch.equal(made.generate(), made.whole)


def test_tasks_are_told_apart_and_what_is_left_out_has_its_reason():
    assert len({task.name for task in TASKS}) == len(TASKS)
    assert all(LEFT_OUT.values()) and not set(LEFT_OUT) & {task.pipeline for task in TASKS}
    assert all(hasattr(diffusers, name) for name in LEFT_OUT)
