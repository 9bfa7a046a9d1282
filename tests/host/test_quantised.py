"""Weights that are kept rounded: the cache works with them, and knows calibrations that were made without."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from fastcache_xdit import FastCacheConfig, fastcache
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


def torchao(pipe, dynamic=False):
    quantization = pytest.importorskip("torchao.quantization")
    name = "Int8DynamicActivationInt8WeightConfig" if dynamic else "Int8WeightOnlyConfig"
    quantization.quantize_(pipe.transformer, getattr(quantization, name)())


def torchao_dynamic(pipe):
    torchao(pipe, dynamic=True)


def quanto(pipe):
    library = pytest.importorskip("optimum.quanto")
    library.quantize(pipe.transformer, weights=library.qint8)
    library.freeze(pipe.transformer)


KINDS = {
    "DynamicQuantizedLinear": native,
    "Int8Tensor": torchao,
    "Int8Tensor dynamic": torchao_dynamic,
    "WeightQBytesTensor qint8": quanto,
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
    with fastcache(pipe, calibration=handle.learnt) as given:
        served(pipe)
        (line,) = given.report().remarks
        assert f"made with plain weights, and they are {kind} here" in line
    with fastcache(plain, calibration=handle.learnt) as given:
        served(plain)
        assert given.report().remarks == ()
