"""Forecasts of keys and values: planted weights are found, one for each step and projection."""

import pytest
import torch

from fastcache_xdit.approx.keys_values import STREAM, KeysValues, KeysValuesForecast, add_to
from fastcache_xdit.approx.moments import Halves

SIGMAS = (1.0, 0.8, 0.6, 0.4, 0.2)
LAYERS = {"0 keys": (1.5, -0.75), "0 values": (0.25, 0.5)}


def rows_of(weights, seed):
    """Rows [n, D] of five steps; those of the fourth are a weighted sum of those of the third and the first."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randn(40, 6, generator=generator) for _ in SIGMAS]
    rows[3] = weights[0] * rows[2] + weights[1] * rows[0]
    return rows


def seen(seed):
    moments = {}
    add_to(moments, {layer: rows_of(weights, seed) for layer, weights in LAYERS.items()}, SIGMAS)
    return moments[STREAM]


@pytest.fixture
def forecast() -> KeysValuesForecast:
    return KeysValuesForecast(KeysValues(tuple(LAYERS), Halves(seen(0), seen(1))))


@pytest.mark.parametrize("dtype, close", [(torch.float32, 1e-3), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("layer", LAYERS)
def test_planted_weights_are_found(forecast, layer, dtype, close):
    rows = [each.to(dtype)[None] for each in rows_of(LAYERS[layer], seed=7)]
    found = forecast.rows(layer, 3, [(2, rows[2]), (0, rows[0])])
    assert found.dtype == dtype
    torch.testing.assert_close(found, rows[3], atol=close, rtol=close)


def test_one_known_step_is_enough(forecast):
    """Of unrelated rows nothing is known but how large they are: less error than with the last ones."""
    rows = rows_of(LAYERS["0 keys"], seed=7)
    found = forecast.rows("0 keys", 4, [(2, rows[2][None])])[0]
    assert (found - rows[4]).norm() < (rows[2] - rows[4]).norm()
