"""Every spec drives the real diffusers class: blocks found, streams read and packed as the model does."""

import pytest
import torch
from torch import nn

from fastcache_xdit import FastCacheConfig, fastcache
from fastcache_xdit.models.catalogue import SPECS, known_models, spec_for
from fastcache_xdit.models.spec import ENCODER
from fastcache_xdit.models.watch import signature_of
from fastcache_xdit.segments.segment import blocks_of
from tests import tiny

FAMILIES = [family for family in tiny.FAMILIES if family != "pixart_sigma"]


def forward(model, family, timestep):
    with torch.no_grad():
        return model(**tiny.forward_arguments(family, timestep=timestep), return_dict=False)[0]


def test_every_spec_is_driven_here():
    assert {type(tiny.transformer(family)).__name__ for family in FAMILIES} == set(known_models())


@pytest.mark.parametrize("family", FAMILIES)
def test_all_blocks_of_the_model_are_listed_in_running_order(family):
    model = tiny.transformer(family)
    blocks = blocks_of(model, spec_for(model), {})
    order = []
    hooks = [block.module.register_forward_pre_hook(lambda *_, b=block: order.append(b.name)) for block in blocks]
    forward(model, family, 500)
    for hook in hooks:
        hook.remove()
    assert order == [block.name for block in blocks]
    assert len(blocks) == 8, "no block list of the tiny model is missing"


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_return_what_the_spec_says(family):
    model = tiny.transformer(family)
    for block in blocks_of(model, spec_for(model), {}):

        def check(module, args, kwargs, output, block=block):
            streams = block.spec.unpack(output)
            packed = block.spec.pack(streams)
            entered = block.spec.reader(signature_of(module))(args, kwargs)
            assert streams.hidden_states.shape == entered.hidden_states.shape
            assert (entered.encoder_hidden_states is not None) == (ENCODER in block.spec.returns)
            assert type(packed) is type(output)

        block.module.register_forward_hook(check, with_kwargs=True)
    forward(model, family, 500)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("granularity", ["step", "group", "block"])
def test_a_skipped_step_is_close_and_shaped_like_a_computed_one(family, granularity):
    model = tiny.transformer(family)
    config = FastCacheConfig(test="paper", granularity=granularity, error_budget=100, warmup_steps=2)
    truth = forward(model, family, 480)
    with fastcache(model, config) as handle:
        for timestep in (500, 490, 480):
            out = forward(model, family, timestep)
    report = handle.report()
    assert report.counters.approximated.total() == 7, "all but the lead block of the third step"
    assert out.shape == truth.shape
    assert (out - truth).norm() / truth.norm() < 0.02


def test_subclasses_match_and_strangers_are_told_what_is_known():
    class MyFlux(type(tiny.transformer("flux"))):
        pass

    model = tiny.transformer("flux")
    model.__class__ = MyFlux
    assert spec_for(model) is next(spec for spec in SPECS if spec.name == "FluxTransformer2DModel")
    with pytest.raises(
        ValueError, match="does not know the blocks of Linear; it knows those of PixArtTransformer2DModel, DiT"
    ):
        spec_for(nn.Linear(1, 1))
