"""Training through the sampler: it helps what it is trained on, and what it finds is what a cache then applies."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastcache_xdit import FastCacheConfig
from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.host.xdit import engine, loading
from fastcache_xdit.plugin import register
from fastcache_xdit.tuning import polish
from fastcache_xdit.tuning.calls import PipelineCall
from fastcache_xdit.tuning.polish import Polisher
from fastcache_xdit.tuning.runner import Runner, relative_error
from shapes.loading import calibration_path, generation_defaults, model_path

MASK = "10101010"
PROMPTS = ["a red circle left of a blue square on a dark background", "a pink triangle on a light background"]


@pytest.fixture(scope="module")
def runner():
    register()
    running = engine.Engine(str(model_path("shapes-pixart")), loading.xdit_options({}), "float32")
    running.pipe.set_progress_bar_config(disable=True)
    return Runner(running.pipe)


@pytest.fixture(scope="module")
def call():
    size = {**generation_defaults("shapes-pixart"), "num_inference_steps": len(MASK), "use_resolution_binning": False}
    seeds = [torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))]
    return PipelineCall({"prompt": PROMPTS, "generator": seeds, **size}, 0)


@pytest.fixture(scope="module")
def config():
    path = str(calibration_path("shapes-pixart"))
    return FastCacheConfig.scheduled(MASK, calibration=path, stand_in="delta+history", lead_blocks=0)


@pytest.fixture(scope="module")
def calibration(config):
    return Calibration.load(config.calibration)


def error(runner, call, config, calibration):
    with runner.enabled(config, calibration) as generate:
        latents = generate(call)
    return relative_error(latents, runner.uncached(call)).log().mean().item()


def test_training_helps_and_is_what_the_cache_applies(runner, call, config, calibration):
    told = []
    before = error(runner, call, config, calibration)
    refits = Polisher(runner, [call] * 3, 8).polish(config, calibration, told.append)
    gained = before - error(runner, call, config, replace(calibration, refits=refits))
    assert gained > 0.1
    assert told == [f"trained 8 batches: held-out latents {gained * 20 / torch.tensor(10.0).log():+.2f} dB"]


@pytest.mark.parametrize("iterations, rate", [(0, 0.1), (8, 100.0)])
def test_what_does_not_help_leaves_the_fit_itself(runner, call, config, calibration, monkeypatch, iterations, rate):
    """Without an iteration, or after one that only did harm, coefficients are those that the calibration gives."""
    monkeypatch.setattr(polish, "RATE", rate)
    refits = Polisher(runner, [call] * 3, iterations).polish(config, calibration, print)
    stand_in = calibration.stand_in(next(iter(refits)).segment, config.stand_in, carry_errors=True)
    stand_in.begin(runner.sigmas())
    for name, coefficients in refits.items():
        computed = tuple(range(name.step - 1, -1, -2))
        torch.testing.assert_close(coefficients, stand_in.coefficients(name.stream, name.step, computed).float())
