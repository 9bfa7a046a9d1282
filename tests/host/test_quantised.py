"""Weights that are kept rounded: the cache works with them, and knows calibrations that were made without."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from fastcache_xdit import FastCacheConfig, fastcache
from fastcache_xdit.errors import UsageError
from fastcache_xdit.home import Home
from fastcache_xdit.host.find import host_of
from fastcache_xdit.host.identity import identity
from tests import tiny

STEPS = 8
CONFIGS = {
    "output": FastCacheConfig(learn=1),
    "step": FastCacheConfig.scheduled("10" * (STEPS // 2)),
    "block": FastCacheConfig(test="paper", granularity="block", error_budget=1.0),
}


def native(pipe):
    """Torch's own, whose weights are no parameters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe.transformer = torch.ao.quantization.quantize_dynamic(pipe.transformer, {nn.Linear}, dtype=torch.qint8)


def torchao(name):
    def quantise(pipe):
        quantization = pytest.importorskip("torchao.quantization")
        quantization.quantize_(pipe.transformer, getattr(quantization, name)())

    return quantise


def quanto(pipe):
    library = pytest.importorskip("optimum.quanto")
    library.quantize(pipe.transformer, weights=library.qint8)
    library.freeze(pipe.transformer)


def bitsandbytes(pipe):
    """Replace all layers but the last, as diffusers does where it loads a model rounded to NF4."""
    library = pytest.importorskip("bitsandbytes")
    for path, layer in list(pipe.transformer.named_modules()):
        if isinstance(layer, nn.Linear) and path != "proj_out":
            rounded = library.nn.Linear4bit(
                layer.in_features, layer.out_features, layer.bias is not None, quant_type="nf4"
            )
            rounded.load_state_dict(layer.state_dict())
            pipe.transformer.set_submodule(path, rounded.to("cpu"))  # which rounds


KINDS = {
    "DynamicQuantizedLinear": native,
    "Int8Tensor": torchao("Int8WeightOnlyConfig"),
    "Int8Tensor dynamic": torchao("Int8DynamicActivationInt8WeightConfig"),
    "Float8Tensor": torchao("Float8WeightOnlyConfig"),
    "WeightQBytesTensor qint8": quanto,
    "Params4bit nf4": bitsandbytes,
}


def served(pipe):
    return pipe(**tiny.call_arguments("flux"), num_inference_steps=STEPS).images


@pytest.fixture(params=KINDS)
def quantised(request):
    pipe = tiny.pipeline("flux")
    KINDS[request.param](pipe)
    return pipe, request.param


def test_the_cache_works_and_is_taken_off(quantised, tmp_path):
    pipe, kind = quantised
    assert identity(host_of(pipe))["quantisation"] == [kind]
    whole = served(pipe)
    for config in CONFIGS.values():
        with fastcache(pipe, config, home=Home(tmp_path)) as handle:
            served(pipe)
            cached = served(pipe)
            assert sum(entry.skip for entry in handle.report().ledger) > 0
            assert (cached - whole).norm() / whole.norm() < 0.2
        assert torch.equal(served(pipe), whole)


def test_what_was_learnt_of_plain_weights_is_learnt_anew_and_a_calibration_is_said(quantised, tmp_path):
    plain, (pipe, kind) = tiny.pipeline("flux"), quantised
    with fastcache(plain, learn=1, home=Home(tmp_path)) as handle:
        served(plain)
    with fastcache(pipe, learn=1, home=Home(tmp_path)) as again:
        assert again.is_recording
    if kind == "DynamicQuantizedLinear":  # what is not rounded is too little to know the model by
        return
    if kind.startswith("Params4bit"):  # 4 bits, packed: the weights are others
        with pytest.raises(UsageError, match="another model: weights"), fastcache(pipe, calibration=handle.learnt):
            pass
        return
    with fastcache(pipe, calibration=handle.learnt) as given:
        served(pipe)
        (line,) = given.report().remarks
        assert f"made with plain weights, and they are {kind} here" in line
    with fastcache(plain, calibration=handle.learnt) as given:
        served(plain)
        assert given.report().remarks == ()
