"""Standing in for the output of denoisers without an entry in the catalogue, a U-Net among them."""

from __future__ import annotations

import pytest
import torch

from fastcache_xdit import FastCacheConfig, fastcache
from fastcache_xdit.host.diffusers import transformer_of
from fastcache_xdit.models.catalogue import is_known
from tests.models.unknown import UNKNOWN

STEPS = 8


class Model:
    """A tiny pipeline, its requests, and how often its denoiser really ran."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        self.pipe, self.call = UNKNOWN[name]()
        self.pipe.set_progress_bar_config(disable=True)
        self.runs = 0
        self.denoiser = transformer_of(self.pipe)
        # a layer inside: what is called for a skipped step does not reach it
        next(self.denoiser.children()).register_forward_hook(self._ran)

    def generate(self, seed: int = 3, **changes) -> torch.Tensor:
        self.runs = 0
        arguments = {**self.call, "num_inference_steps": STEPS, "output_type": "latent", **changes}
        return self.pipe(**arguments, generator=torch.Generator().manual_seed(seed))[0]

    def _ran(self, *_) -> None:
        self.runs += 1


@pytest.fixture(scope="module", params=UNKNOWN)
def model(request):
    return Model(request.param)


@pytest.fixture(scope="module")
def whole(model):
    return model.generate()


def test_the_catalogue_does_not_know_it(model):
    assert not is_known(model.denoiser)


def test_with_the_whole_budget_every_bit_is_the_same(model, whole):
    with fastcache(model.pipe, budget=1, learn=0):
        assert torch.equal(model.generate(), whole)
        assert model.runs == STEPS


def test_skipped_steps_do_not_run(model, whole):
    with fastcache(model.pipe, budget=0.5, learn=0) as handle:
        latents = model.generate()
        report = handle.report()
    assert model.runs == STEPS // 2
    assert (report.counters.computed.total(), report.counters.approximated.total()) == (STEPS // 2, STEPS // 2)
    assert latents.isfinite().all()
    assert 0 < (latents - whole).norm() / whole.norm() < 0.1


def test_it_holds_three_outputs_and_the_last_one_of_each_call(model):
    shapes = []
    with fastcache(model.pipe, budget=0.5, learn=0) as handle:
        with handle.watched(lambda tick, output, *latents: shapes.append(output)):
            model.generate()
        held = handle.report().bytes_held - handle._session.driver.pilot.bytes_held()
    handed_over = shapes[0].numel() * shapes[0].element_size()
    assert 3 * handed_over < held <= 5 * handed_over  # both branches of guidance are one call here


def test_learning_makes_it_better(model, whole, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTCACHE_HOME", str(tmp_path))
    with fastcache(model.pipe, budget=0.5, learn=0):
        pooled = model.generate()
    with fastcache(model.pipe, budget=0.5, learn=2) as handle:
        for seed in (1, 2):
            model.generate(seed)
        assert handle.learnt
        learnt = model.generate()
        assert model.runs == STEPS // 2
    assert (learnt - whole).norm() < (pooled - whole).norm()


def test_disabling_restores_it(model, whole):
    kind = type(model.pipe)
    with fastcache(model.pipe, budget=0.25):
        model.generate()
        assert type(model.pipe) is not kind
    assert type(model.pipe) is kind
    assert "forward" not in vars(model.denoiser)
    assert torch.equal(model.generate(), whole)


def test_a_schedule_skips_blocks_or_stands_in_for_the_output_where_they_cannot_be_told(model, whole, caplog):
    with fastcache(model.pipe, FastCacheConfig.scheduled("11010010")) as handle:
        latents = model.generate()
        model.generate()  # without the looks at the model that the first call takes
    skipped = handle.report().counters.approximated
    assert set(skipped.values()) == {8}
    is_unet = "output" in skipped
    assert is_unet == hasattr(model.pipe, "unet") == ("cannot be skipped one by one" in caplog.text)
    assert is_unet == (model.runs == 4)
    assert 0 < (latents - whole).norm() / whole.norm() < 0.1
