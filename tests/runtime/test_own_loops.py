"""Loops of a user's own: their steps and requests are told apart, whatever the arguments are called."""

from __future__ import annotations

import contextlib

import diffusers
import pytest
import torch
from torch import nn

from fastcache_xdit import FastCacheConfig, enable, fastcache
from fastcache_xdit.errors import UsageError

STEPS, WIDTH = 10, 16
SIGMAS = [1 - step / STEPS for step in range(STEPS)]
MASK = FastCacheConfig.scheduled("1110101010").to_dict()
NAMES = ("cond", "uncond")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.think = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)
        )

    def forward(self, water, beat):
        return water + 0.3 * self.think(water + beat)


class Pond(nn.Module):
    """A transformer whose arguments have names of their own."""

    def __init__(self):
        super().__init__()
        self.clock = nn.Linear(1, WIDTH)
        self.ripples = nn.ModuleList(Block() for _ in range(6))

    def forward(self, water, pebbles, label, moment):
        return self.run(water, pebbles, label, self.clock(moment))

    def run(self, water, pebbles, label, beat):
        for ripple in self.ripples:
            water = ripple(water, beat + pebbles.mean(1, keepdim=True) + 0.1 * label.view(-1, 1, 1))
        return water


class Timed(Pond):
    """It names its timestep as others do."""

    def forward(self, water, pebbles, label, timestep):
        return self.run(water, pebbles, label, self.clock(timestep))


class Timeless(Pond):
    """It is told no timestep."""

    def forward(self, water, pebbles, label):
        return self.run(water, pebbles, label, 0)


def arguments(model, latents, text, label, sigma):
    given = [latents, text, label, torch.full((1, 1, 1), sigma)]
    return given[:-1] if isinstance(model, Timeless) else given


def guided(model, latents, sigma, handle=None):
    """Call the model for both branches of guidance, by their names where a handle is given."""
    texts = torch.randn(1, 6, WIDTH, generator=torch.Generator().manual_seed(9)), torch.zeros(1, 6, WIDTH)
    outputs = []
    for name, text, label in zip(NAMES, texts, torch.tensor([[3], [7]]), strict=True):
        with handle.branch(name) if handle else contextlib.nullcontext():
            outputs.append(model(*arguments(model, latents, text, label, sigma)))
    return 3 * outputs[0] - 2 * outputs[1]


def plain(model, latents, sigma):
    text = torch.randn(1, 6, WIDTH, generator=torch.Generator().manual_seed(9))
    return model(*arguments(model, latents, text, torch.tensor([3]), sigma))


def sample(model, seed=1, sigmas=SIGMAS, velocity=plain, **options):
    latents = torch.randn(1, 12, WIDTH, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for sigma in sigmas:
            latents -= velocity(model, latents, sigma, **options) / STEPS  # in place, as loops may
    return latents


def cached(model, **options):
    return fastcache(model, FastCacheConfig.from_dict({**MASK, **options}), sigmas=SIGMAS)


@pytest.fixture(params=[Pond, Timed, Timeless])
def model(request):
    torch.manual_seed(0)
    return request.param().eval()


@pytest.mark.parametrize("granularity", ["step", "output"])
def test_branches_of_guidance_without_a_name_are_told_and_no_step_of_their_own(model, granularity):
    whole = sample(model, velocity=guided)
    with cached(model, granularity=granularity) as handle:
        pictures = [sample(model, velocity=guided) for _ in range(2)]
        report = handle.report()
    assert torch.equal(*pictures) and (pictures[0] - whole).norm() < 0.05 * whole.norm()
    assert report.counters.requests == 2 and report.counters.bypassed_calls == 2 * STEPS
    assert "handle.branch" in report.remarks[0]


def test_branches_of_guidance_that_are_named_are_all_cached(model):
    whole = sample(model, velocity=guided)
    with cached(model) as handle:
        pictures = [sample(model, velocity=guided, handle=handle) for _ in range(2)]
        report = handle.report()
    assert torch.equal(*pictures) and (pictures[0] - whole).norm() < 0.01 * whole.norm()
    assert report.counters.requests == 2 and report.counters.bypassed_calls == 0 and not report.remarks


@pytest.mark.parametrize("granularity", ["step", "output"])
def test_loops_that_stop_short_change_no_later_request(model, granularity):
    with cached(model, granularity=granularity):
        alone = sample(model)
    with cached(model, granularity=granularity) as handle:
        for sigmas in (SIGMAS[:4], SIGMAS[:7], SIGMAS[:1]):
            sample(model, seed=2, sigmas=sigmas)
            if isinstance(model, Timeless):
                handle.begin()
        handle.begin()  # after a single step, at whose timestep the next request begins
        assert torch.equal(sample(model), alone) and torch.equal(sample(model), alone)
        assert handle.report().counters.requests == 5 and not handle.report().remarks


@pytest.mark.parametrize("sigmas", ["abc", [], [0, 0.5, 1], [1000, 500], [1, 1], [1, None], 0.5, [float("nan")]])
def test_noise_levels_that_are_none_are_refused(sigmas):
    with pytest.raises(UsageError, match="at least one, falling from 1 towards 0, not"):
        enable(Pond(), sigmas=sigmas)


class Pipeline:
    """A pipeline that calls its transformer twice in each step, and may leave its scheduler where it is."""

    def __init__(self, model, steps_scheduler):
        self.transformer, self.steps_scheduler = model, steps_scheduler
        self.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()

    @torch.no_grad()
    def __call__(self, seed=1):
        latents = torch.randn(1, 12, WIDTH, generator=torch.Generator().manual_seed(seed))
        self.scheduler.set_timesteps(STEPS)
        for step, timestep in enumerate(self.scheduler.timesteps):
            output = guided(self.transformer, latents, float(timestep) / 1000)
            if self.steps_scheduler:
                latents = self.scheduler.step(output, timestep, latents)[0]
            else:
                latents = latents + output * (self.scheduler.sigmas[step + 1] - self.scheduler.sigmas[step])
        return latents


@pytest.mark.parametrize("granularity", ["step", "output"])
@pytest.mark.parametrize("steps_scheduler", [True, False])
def test_unnamed_branches_beside_a_scheduler(model, steps_scheduler, granularity):
    pipe = Pipeline(model, steps_scheduler)
    whole, config = pipe(2), FastCacheConfig.from_dict({**MASK, "granularity": granularity})
    with fastcache(pipe, config):
        alone = pipe(2)
    with fastcache(pipe, config) as handle:
        pipe(1)
        assert torch.equal(pipe(2), alone)
        report = handle.report()
    assert (alone - whole).norm() < 0.05 * whole.norm()
    assert report.counters.bypassed_calls == 0 and not report.remarks
    assert report.counters.approximated.total() > 0


def test_calls_behind_the_last_step_of_a_scheduler_are_told_as_such():
    pipe = Pipeline(Pond().eval(), True)
    with fastcache(pipe, FastCacheConfig.from_dict(MASK)) as handle:
        pipe()
        pipe.scheduler.set_timesteps(STEPS)
        for _ in range(STEPS + 1):
            latents = torch.randn(1, 12, WIDTH)
            output = plain(pipe.transformer, latents, 0.5)
            if pipe.scheduler.step_index != STEPS:
                pipe.scheduler.step(output, pipe.scheduler.timesteps[0], latents)
        (remark,) = handle.report().remarks
    assert "more often than its scheduler was set up for" in remark and "name" not in remark
