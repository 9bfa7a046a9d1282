"""Training through the sampler: it helps what it is trained on, and what it finds is what a cache then applies."""

from __future__ import annotations

import pytest
import torch

from fastcache_xdit import FastCacheConfig
from fastcache_xdit.host.xdit import engine, loading
from fastcache_xdit.plugin import register
from fastcache_xdit.tuning import polish
from fastcache_xdit.tuning.calibrate import SCHEDULED
from fastcache_xdit.tuning.polish import Polisher
from fastcache_xdit.tuning.refit import Refitter
from fastcache_xdit.tuning.runner import Runner, relative_error
from shapes.loading import calibration_path, generation_defaults, model_path

MASK = "10101010"
PROMPTS = ["a red circle left of a blue square on a dark background", "a pink triangle on a light background"]


@pytest.fixture(scope="module")
def runner():
    register()
    running = engine.Engine(str(model_path("shapes-pixart")), loading.xdit_options({}), "float32")
    running.pipe.set_progress_bar_config(disable=True)
    return Runner(running, {**generation_defaults("shapes-pixart"), "num_inference_steps": len(MASK)})


@pytest.fixture(scope="module")
def batch():
    return engine.batches(PROMPTS, 2, 0)[0]


@pytest.fixture(scope="module")
def config():
    path = str(calibration_path("shapes-pixart"))
    return FastCacheConfig(**SCHEDULED, calibration=path, stand_in="delta+history", schedule={8: MASK}, lead_blocks=0)


def error(runner, batch, config):
    with runner.enabled(config) as watched:
        latents = watched.generate(batch)
    return relative_error(latents, runner.uncached(batch)).log().mean().item()


def test_training_helps_and_is_what_the_cache_applies(runner, batch, config, tmp_path):
    told = []
    before = error(runner, batch, config)
    refits = Polisher(runner, [batch] * 3, 8).polish(config, told.append)
    published = Refitter(runner, [batch] * 3, config.calibration, tmp_path / "polished.safetensors").publish(
        config, refits
    )
    gained = before - error(runner, batch, published)
    assert gained > 0.1
    assert told == [f"trained 8 batches: held-out latents {gained * 20 / torch.tensor(10.0).log():+.2f} dB"]


@pytest.mark.parametrize("iterations, rate", [(0, 0.1), (8, 100.0)])
def test_what_does_not_help_leaves_the_fit_itself(runner, batch, config, monkeypatch, iterations, rate):
    """Without an iteration, or after one that only did harm, coefficients are those that the calibration gives."""
    monkeypatch.setattr(polish, "RATE", rate)
    refits = Polisher(runner, [batch] * 3, iterations).polish(config, print)
    with runner.enabled(config) as watched:
        watched.generate(batch)
        stand_in = watched.handle.driver.stand_ins[0]
        for name, coefficients in refits.items():
            computed = tuple(range(name.step - 1, -1, -2))
            torch.testing.assert_close(coefficients, stand_in.coefficients(name.stream, name.step, computed).float())
